"""A level that is expanded again where its estimated error reaches a tolerance.

A step whose estimate exceeds what is allowed is taken again from an expansion around
the parameters before it, θ₀ + Σ_k u_k, with the optimizer's state there: that after the
gradients at ε = 1, as a truncated series for a second moment may be negative. The
errors of the parts are added up, and each part may use the share of the tolerance that
its steps have on the scale ln(1 + step).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._custom_types import Inputs, Scalar
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._dynamics.series import SeriesState
from .._integrate.estimates import rms_over_points
from .._integrate.restarts import MOST_RESTARTS
from .expansion import AbstractExpansion
from .models import (
    AbstractTraining,
    Judgement,
    LevelState,
    LevelTraining,
    ObservedLevel,
)


class RestartState(NamedTuple):
    level: LevelState

    optimizer: list[Array]
    """The optimizer's state at ε = 1."""

    step: Int[Array, ""]

    start: Int[Array, ""]
    """The step at which the series was expanded."""

    errors: Float[Array, "m *out"]
    """The sum of the estimates of earlier parts."""

    restarts: Float[Array, " most"]
    """The steps of the restarts; NaN after the last."""

    expansions: Int[Array, ""]
    """The number of restarts."""


class RestartingTraining(AbstractTraining):
    """A level of the hierarchy with restarts, trained by an optimizer."""

    dynamics: MatrixFreeHierarchy
    expansion: AbstractExpansion
    """With θ₀ in its state."""

    tolerance: Scalar
    number: int
    """The number of steps."""

    method: str = eqx.field(static=True, default="matrix-free")

    @property
    def level(self) -> LevelTraining:
        """The level between two restarts."""
        return LevelTraining(dynamics=self.dynamics, expansion=self.expansion)

    def initial_state(self) -> RestartState:
        outputs = self.dynamics.outputs(self.dynamics.initial_state())
        zero = jnp.zeros((), jnp.int32)
        restarts = jnp.full(MOST_RESTARTS, jnp.nan, outputs.dtype)
        first = self.level.initial_state()
        optimizer = list(self.expansion.optimizer.start)
        return RestartState(first, optimizer, zero, zero, 0 * outputs, restarts, zero)

    def step(
        self, state: RestartState, x: Inputs, y: Shaped[Array, "b ..."]
    ) -> RestartState:
        after = self._after(state, x, y)

        def again() -> RestartState:
            return self._after(self._expanded(state), x, y)

        # An expansion at the step before would be the same again.
        possible = (state.step > state.start) & (state.expansions < MOST_RESTARTS)
        return jax.lax.cond(possible & self._exceeds(after), again, lambda: after)

    def _after(
        self, state: RestartState, x: Inputs, y: Shaped[Array, "b ..."]
    ) -> RestartState:
        """The state after a step, whatever its error is."""
        dynamics, series = self.dynamics, state.level.series
        gradients = dynamics.gradient(series, x, y).steps
        level = self.expansion.step(
            dynamics.params, dynamics.rates, gradients, *state.level
        )
        gradient = jax.tree.map(lambda *terms: sum(terms), *gradients)
        optimizer = self.expansion.optimizer(
            jax.tree.leaves(gradient),
            state.optimizer,
            jax.tree.leaves(dynamics.parameters(series)),
        ).state
        return state._replace(
            level=LevelState(*level), optimizer=optimizer, step=state.step + 1
        )

    def _exceeds(self, state: RestartState) -> Bool[Array, ""]:
        earlier, error = rms_over_points(jnp.stack([state.errors, self._errors(state)]))
        last = jnp.log1p(jnp.asarray(self.number, error.dtype))
        used = jnp.log1p(jnp.stack([state.start, state.step]).astype(error.dtype))
        share = (used[1] - used[0]) / last
        allowed = jnp.minimum(earlier + self.tolerance * share, self.tolerance)
        return ~(error <= allowed)  # also where the estimate is NaN

    def _errors(self, state: RestartState) -> Float[Array, "m *out"]:
        return state.errors + jnp.abs(self.level.observed(state.level).errors)

    def _expanded(self, state: RestartState) -> RestartState:
        params = self.dynamics.parameters(state.level.series)
        first = self.expansion.initial_state(
            params, self.dynamics.order, state.optimizer
        )
        now = state.step.astype(state.restarts.dtype)
        return state._replace(
            level=LevelState(*first),
            start=state.step,
            errors=self._errors(state),
            restarts=state.restarts.at[state.expansions].set(now),
            expansions=state.expansions + 1,
        )

    def observed(self, state: RestartState) -> ObservedLevel:
        observed = self.level.observed(state.level)
        return observed._replace(errors=state.errors + jnp.abs(observed.errors))

    def judged(self, start: ObservedLevel, saved: ObservedLevel) -> Judgement:
        return self.level.judged(start, saved)

    def estimated(self, saved: ObservedLevel) -> Float[Array, "T m *out"]:
        return saved.errors

    def trained_state(self, state: RestartState) -> SeriesState:
        return state.level.series

    def restarts(self, state: RestartState) -> Float[Array, " most"]:
        return state.restarts

    def report(
        self, requested: int, note: str, first: Any, lost: Any, last: Any
    ) -> None:
        self.level.report(requested, note, first, lost, last)
