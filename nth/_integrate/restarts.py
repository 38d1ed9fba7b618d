"""Solves that end, or expand again, where the estimated error reaches a tolerance.

A matrix-free solve can be continued at any accuracy: where the estimate reaches its
limit, the series is expanded again around the parameters reached, θ₀ + Σ_k u_k, and
starts from zero. Under gradient flow, which contracts, the errors of the parts add up
to no more than their sum. So each part may use a share of the tolerance: that of the
time that it covers, on the scale ln(1 + ρt), with ρ the rate of the outputs at t = 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from .._custom_types import Params, Scalar, State
from .._dynamics.base import AbstractDynamics
from .._dynamics.dense import DenseHierarchy
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._dynamics.series import SeriesState
from .._dynamics.truncation import AbstractTruncation
from .._internal.validation import is_traced
from .._solution.solution import Solution
from .estimates import Reached, rms_over_points
from .segments import Piece
from .validity import from_first, with_nan

# The most expansions of one solve.
MOST_RESTARTS = 1000

# The share of the tolerance that each part may use however short it is: without it, the
# rounding errors of the estimate would end a part at its start.
_LEAST_SHARE = 0.005


class Budget(eqx.Module):
    """The largest estimated error allowed at each time."""

    tolerance: Scalar
    rate: Scalar | None = None
    """ρ; `None` if the whole tolerance is allowed at any time."""

    start: Scalar | None = None
    """Where the part began."""

    last: Scalar | None = None
    """The last time of the solve."""

    def allowed(self, t: Scalar) -> Scalar:
        """The limit of the estimate at t."""
        if self.rate is None or self.start is None or self.last is None:
            return self.tolerance
        now, before, all_ = (
            jnp.log1p(self.rate * time) for time in (t, self.start, self.last)
        )
        share = (now - before) / jnp.where(all_ > 0, all_, 1)
        return self.tolerance * (_LEAST_SHARE + (1 - _LEAST_SHARE) * share)


def error_event(dynamics: AbstractTruncation, budget: Budget) -> diffrax.Event:
    """The event that the estimated error reaches its limit."""

    @eqx.filter_jit
    def margin(t: Scalar, state: State) -> Scalar:
        error = rms_over_points(dynamics.output_errors(state)[None])[0]
        allowed = budget.allowed(jnp.asarray(t, error.dtype))
        return (allowed - jnp.where(jnp.isfinite(error), error, jnp.inf)) / allowed

    # diffrax passes `y` by name when it locates the event.
    def reached(t: Scalar, y: State, args: Any, **_: Any) -> Scalar:
        # Bounded, so that the root finder takes no step from an infinite value.
        return jnp.maximum(margin(t, y), -1e3)

    return diffrax.Event(reached, optx.Newton(rtol=1e-3, atol=1e-3))


def require_estimate(dynamics: AbstractDynamics, restart: bool) -> None:
    """Raise `ValueError` unless `dynamics` estimates its error, and can expand again if
    `restart`."""
    known = isinstance(dynamics, AbstractTruncation)
    if isinstance(dynamics, DenseHierarchy):
        known = len(dynamics.levels) > 2 or dynamics.network is not None
    if not known:
        raise ValueError(
            f"until_error: the {dynamics.label} has no estimate of its error. Use "
            "nth.MatrixFreeHierarchy, or nth.DenseHierarchy (at level 2 with network), "
            "or leave out until_error."
        )
    if restart and not isinstance(dynamics, MatrixFreeHierarchy):
        raise ValueError(
            f"restart: the {dynamics.label} does not know the parameters to expand "
            'around. Use method="matrix-free", or nth.MatrixFreeHierarchy.'
        )


class Expansion(eqx.Module):
    """What the parts of a solve with restarts hand on."""

    params: Params
    """What the series is expanded around."""

    errors: Float[Array, "m *out"]
    """The sum of the estimates of earlier parts."""

    start: Scalar
    times: Float[Array, " most"]
    """When the series was expanded again; NaN after the last."""

    count: Int[Array, ""]


class Rebased(eqx.Module):
    """`save_fn` of states that hold what they are expanded around."""

    save_fn: Callable[..., Any]
    params: Params

    def __call__(self, t: Scalar, state: SeriesState, args: Any) -> Any:
        return self.save_fn(t, rebased(state, self.params), args)


def rebased(state: SeriesState, params: Params) -> SeriesState:
    """`state` with the parameters that it is expanded around."""
    return SeriesState(params if state.base is None else state.base, state.steps)


def first_expansion(dynamics: MatrixFreeHierarchy) -> Reached:
    """The values at t = 0."""
    state = dynamics.initial_state()
    outputs = dynamics.outputs(state)
    zero = jnp.zeros((), outputs.dtype)
    times = jnp.full(MOST_RESTARTS, jnp.nan, outputs.dtype)
    count = jnp.zeros((), jnp.int32)
    expansion = Expansion(dynamics.params, 0 * outputs, zero, times, count)
    return Reached(state, None, expansion)


@eqx.filter_jit
def output_rate(dynamics: AbstractDynamics) -> Scalar:
    """ρ, the rate of change of the outputs at t = 0 over n times their gradient."""
    state = dynamics.initial_state()
    g, velocity, _ = dynamics.output_rates(jnp.zeros((), _dtype(dynamics)), state)
    slope = rms_over_points(len(g) * g[None])[0]
    rate = rms_over_points(velocity[None])[0]
    return rate / jnp.where(slope > 0, slope, 1)


def _dtype(dynamics: AbstractDynamics) -> Any:
    return jnp.result_type(*jax.tree.leaves(dynamics.initial_state()))


class Restarting(NamedTuple):
    """A solve from one requested time to the next, in as many parts as it takes."""

    dynamics: MatrixFreeHierarchy
    budget: Budget
    solve: Callable[..., Piece]
    save_fn: Callable[..., Any] | None

    def __call__(
        self, reached: Reached, start: Scalar, ts: Float[Array, " T"]
    ) -> Piece:
        piece = self._part(reached, start, ts)
        if is_traced(piece):  # for the shapes alone
            return piece
        while bool(piece.result == diffrax.RESULTS.event_occurred):
            before, reached = piece, self._expanded(piece)
            assert reached.expansion is not None
            if int(reached.expansion.count) == MOST_RESTARTS:
                break
            piece = self._part(reached, reached.expansion.start, ts)
            piece = piece._replace(
                valid_until=jnp.minimum(before.valid_until, piece.valid_until),
                counts={
                    name: value if name == "last_time" else before.counts[name] + value
                    for name, value in piece.counts.items()
                },
            )
        return piece

    def _part(self, reached: Reached, start: Scalar, ts: Float[Array, " T"]) -> Piece:
        expansion = reached.expansion
        assert expansion is not None
        save_fn = self.save_fn
        if save_fn is not None:
            save_fn = Rebased(save_fn, expansion.params)
        budget = eqx.tree_at(
            lambda b: b.start, self.budget, expansion.start, is_leaf=lambda x: x is None
        )
        piece = self.solve(
            self._around(expansion), Reached(reached.state), start, ts, save_fn, budget
        )
        errors = expansion.errors[None] + jnp.abs(piece.saved["errors"])
        return piece._replace(
            saved={**piece.saved, "errors": errors},
            state=Reached(piece.state.state, None, expansion),
        )

    def _around(self, expansion: Expansion) -> MatrixFreeHierarchy:
        return eqx.tree_at(lambda d: d.params, self.dynamics, expansion.params)

    def _expanded(self, piece: Piece) -> Reached:
        """The start of the next part, around the parameters reached."""
        expansion, t = piece.state.expansion, piece.counts["last_time"]
        dynamics = self._around(expansion)
        return _expand(dynamics, expansion, piece.state.state, t)


@eqx.filter_jit
def _expand(
    dynamics: MatrixFreeHierarchy, expansion: Expansion, state: SeriesState, t: Scalar
) -> Reached:
    params = dynamics.parameters(state)
    new = Expansion(
        params=params,
        errors=expansion.errors + jnp.abs(dynamics.output_errors(state)),
        start=jnp.asarray(t, expansion.start.dtype),
        times=expansion.times.at[expansion.count].set(t),
        count=expansion.count + 1,
    )
    around = eqx.tree_at(lambda d: d.params, dynamics, params)
    return Reached(around.initial_state(), None, new)


def with_restart_times(solution: Solution, piece: Piece) -> Solution:
    """`solution` with the times of its restarts."""
    expansion = piece.state.expansion
    times = expansion.times[: int(np.asarray(expansion.count))]
    return eqx.tree_at(
        lambda s: s.restarts, solution, times, is_leaf=lambda leaf: leaf is None
    )


def until(piece: Piece, limit: Scalar) -> tuple[Piece, Bool[Array, ""]]:
    """The piece with NaN from the first requested time where the estimate exceeds
    `limit`, and whether there is one."""
    over = from_first(rms_over_points(piece.saved["errors"]) > limit)
    return piece._replace(saved=with_nan(piece.saved, over)), jnp.any(over)
