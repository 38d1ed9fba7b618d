"""Models of discrete training: the network itself, and a level of the hierarchy.

Each knows its state, a step, what is saved at a requested step, and how the saved
values are judged. The loop over the steps is the same.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from .._custom_types import Inputs, Params, Scalar, State
from .._dynamics.base import two_norm
from .._dynamics.gradient_flow import GradientFlow
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._dynamics.series import SeriesState
from .._dynamics.truncation import series_factor
from .._integrate.validity import largest_outputs
from .._internal.warnings import warn
from .expansion import AbstractExpansion, OptimizerState, add_updates
from .optimizer import TracedOptimizer

# A level is outside its window where an estimate of its error exceeds this fraction of
# the predicted change.
_SHARE = 0.5


class Judgement(NamedTuple):
    """Of each requested step."""

    lost: Bool[Array, " T"]
    """Whether outputs are infinite, or are too large to be outputs of this network."""

    left: Bool[Array, " T"]
    """Whether a truncation is outside its window."""


class AbstractTraining(eqx.Module):
    """A model of training in steps."""

    dynamics: eqx.AbstractVar[Any]
    """Gradients, outputs and parameters of a state."""

    method: eqx.AbstractVar[str]

    @abc.abstractmethod
    def initial_state(self) -> Any:
        """The state at step 0."""

    @abc.abstractmethod
    def step(self, state: Any, x: Inputs, y: Shaped[Array, "b ..."]) -> Any:
        """The state after a step on the points `x`, `y`."""

    @abc.abstractmethod
    def observed(self, state: Any) -> Any:
        """What is saved at a requested step: arrays, of which `outputs` is one."""

    @abc.abstractmethod
    def judged(self, start: Any, saved: Any) -> Judgement:
        """The judgement of what was saved, given what is seen at step 0."""

    @abc.abstractmethod
    def estimated(self, saved: Any) -> Float[Array, "T m *out"] | None:
        """The estimated errors of the saved outputs, if there is an estimate."""

    @abc.abstractmethod
    def trained_state(self, state: Any) -> State:
        """The state of a solution."""

    @abc.abstractmethod
    def restarts(self, state: Any) -> Float[Array, " most"] | None:
        """The steps at which a series was expanded again, NaN after the last; `None`
        if it never is."""

    @abc.abstractmethod
    def report(
        self, requested: int, note: str, first: Any, lost: Any, last: Any
    ) -> None:
        """Warn if training diverged after the requested step `last`, or if a
        truncation left its window at step `first`."""


class NetworkState(NamedTuple):
    params: Params
    optimizer: OptimizerState


class Observed(NamedTuple):
    outputs: Float[Array, "m *out"]


class NetworkTraining(AbstractTraining):
    """The network, trained by an optimizer."""

    dynamics: GradientFlow
    optimizer: TracedOptimizer
    method: str = eqx.field(static=True, default="training")

    def initial_state(self) -> NetworkState:
        return NetworkState(self.dynamics.params, list(self.optimizer.start))

    def step(
        self, state: NetworkState, x: Inputs, y: Shaped[Array, "b ..."]
    ) -> NetworkState:
        gradient = self.dynamics.gradient(state.params, x, y)
        return optimized(self.optimizer, state, gradient, self.dynamics.rates)

    def observed(self, state: NetworkState) -> Observed:
        return Observed(self.dynamics.outputs(state.params))

    def judged(self, start: Observed, saved: Observed) -> Judgement:
        return judged_finite(saved)

    def estimated(self, saved: Observed) -> None:
        return None

    def trained_state(self, state: NetworkState) -> Params:
        return state.params

    def restarts(self, state: NetworkState) -> None:
        return None

    def report(
        self, requested: int, note: str, first: Any, lost: Any, last: Any
    ) -> None:
        report_divergence(self.dynamics.label, note, lost, last)


def optimized(
    optimizer: TracedOptimizer,
    state: NetworkState,
    gradient: Params,
    rates: Params | None,
) -> NetworkState:
    """The state after a step of `optimizer` by `gradient`."""
    params, before = state
    updates, after = optimizer(
        jax.tree.leaves(gradient), before, jax.tree.leaves(params)
    )
    return NetworkState(add_updates(params, updates, rates), after)


def judged_finite(saved: Observed) -> Judgement:
    """The judgement of a model that is no truncation."""
    flat = saved.outputs.reshape(len(saved.outputs), -1)
    lost = ~jnp.all(jnp.isfinite(flat), axis=1)
    return Judgement(lost, jnp.zeros_like(lost))


def report_divergence(label: str, note: str, lost: Any, last: Any) -> None:
    """Warn if training diverged after the requested step `last`."""
    if lost:
        warn(
            f"the {label}'s training diverges to infinite outputs: "
            f"from the requested step after {last} on they are NaN.{note}",
            RuntimeWarning,
        )


class LevelState(NamedTuple):
    series: SeriesState
    optimizer: OptimizerState


class ObservedLevel(NamedTuple):
    outputs: Float[Array, "m *out"]
    parted: Scalar
    """‖f(θ₀ + Σ_k u_k) − f̃‖ on the training points: of the order of the first term
    that f̃ lacks."""

    last: Scalar
    """‖[f]_{p−1}‖ on the training points, the last term of f̃; 0 at level 2, where it is
    the only one."""

    sizes: Float[Array, " k"]
    """‖u_k‖, of the last two coefficients of the parameters."""

    loss: Scalar

    errors: Float[Array, "m *out"]
    """An estimate of the distance from the trained network's outputs."""


class LevelTraining(AbstractTraining):
    """A level of the hierarchy, trained by an optimizer."""

    dynamics: MatrixFreeHierarchy
    expansion: AbstractExpansion
    method: str = eqx.field(static=True, default="matrix-free")

    def initial_state(self) -> LevelState:
        dynamics, expansion = self.dynamics, self.expansion
        start = expansion.optimizer.start
        return LevelState(
            *expansion.initial_state(dynamics.params, dynamics.order, start)
        )

    def step(
        self, state: LevelState, x: Inputs, y: Shaped[Array, "b ..."]
    ) -> LevelState:
        dynamics = self.dynamics
        gradients = dynamics.gradient(state.series, x, y).steps
        after = self.expansion.step(dynamics.params, dynamics.rates, gradients, *state)
        return LevelState(*after)

    def observed(self, state: LevelState) -> ObservedLevel:
        dynamics, problem = self.dynamics, self.dynamics.problem
        terms = dynamics.output_terms(state.series)
        outputs = jnp.sum(terms, axis=0)
        train = outputs[: problem.n_train]
        parted = dynamics.over(dynamics.parameters(state.series), problem.x) - outputs
        sizes = jnp.stack([two_norm(u) for u in state.series.steps[-2:]])
        last = jnp.linalg.norm(terms[-1, : problem.n_train].ravel())
        return ObservedLevel(
            outputs=outputs,
            parted=jnp.linalg.norm(parted[: problem.n_train].ravel()),
            last=last if dynamics.order > 2 else jnp.zeros_like(last),
            sizes=sizes,
            loss=problem.loss(train, problem.y_train),
            errors=self._errors(parted, terms[-1], sizes),
        )

    def _errors(
        self,
        parted: Float[Array, "m *out"],
        last: Float[Array, "m *out"],
        sizes: Float[Array, " k"],
    ) -> Float[Array, "m *out"]:
        """The larger of two estimates. f(θ₀ + Σ_k u_k) − f̃ has the terms that the
        network's nonlinearity adds, and not those of the optimizer, which successive
        terms show. Kernels of odd order are as small as those above them, so the term
        after an odd level is as large as its last one."""
        order = self.dynamics.order
        errors = series_factor(order) * jnp.abs(parted)
        if order == 2:
            return errors
        safe = jnp.where(sizes[0] > 0, sizes[0], 1)
        ratio = 1 if order % 2 else jnp.where(sizes[0] > 0, sizes[1] / safe, 0)
        return jnp.maximum(errors, ratio * jnp.abs(last))

    def judged(self, start: ObservedLevel, saved: ObservedLevel) -> Judgement:
        flat = saved.outputs.reshape(len(saved.outputs), -1)
        limit = largest_outputs(self.dynamics, start.outputs)
        within = jnp.isfinite(flat) & (jnp.abs(flat) <= limit)
        lost = ~jnp.all(within, axis=1)
        return Judgement(lost, lost | self._left_window(start, saved))

    def _left_window(
        self, start: ObservedLevel, saved: ObservedLevel
    ) -> Bool[Array, " T"]:
        problem = self.dynamics.problem
        train = slice(0, problem.n_train)
        moved = saved.outputs[:, train] - start.outputs[None, train]
        moved = jnp.linalg.norm(moved.reshape(len(moved), -1), axis=1)
        size = jnp.linalg.norm(start.outputs[train].ravel())
        rounding = jnp.finfo(size.dtype).eps ** 0.5 * size
        limit = _SHARE * jax.lax.cummax(moved) + rounding
        # A weight decay takes outputs to 0, and the loss to what it is there.
        still = problem.loss(jnp.zeros_like(start.outputs[train]), problem.y_train)
        risen = saved.loss - start.loss > jnp.maximum(start.loss, still)
        far = (saved.parted > limit) | (saved.last > limit)
        # A series whose coefficients grow does not converge.
        far = far | (saved.sizes[:, -1] > saved.sizes[:, 0])
        return far | (risen & (moved > rounding))

    def estimated(self, saved: ObservedLevel) -> Float[Array, "T m *out"]:
        return saved.errors

    def trained_state(self, state: LevelState) -> SeriesState:
        return state.series

    def restarts(self, state: LevelState) -> None:
        return None

    def report(
        self, requested: int, note: str, first: Any, lost: Any, last: Any
    ) -> None:
        if not np.isfinite(first):
            return
        nan = f", and from the requested step after {last} on they are NaN"
        warn(
            f"the {self.dynamics.label} left its window at step {first:.0f}, as far as "
            f"the {requested} requested steps show: its series does not converge, its "
            "outputs part from the network at the parameters that it predicts, or its "
            f"loss doubles. Later values are no predictions{nan if lost else ''}; see "
            f"Solution.valid_until.{note}"
        )
