"""The window in which a truncation is valid: its end, and the warning about it.

Under gradient flow the training loss never increases. So when the predicted loss first
increases, ⟨g, df̃/dt⟩ > 0, the truncation has left its window. With weight decay λ the
quantity that never increases is L + λ/2 ‖θ‖².
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics
from .._internal.warnings import AccuracyWarning, warn

# A solve stops when its outputs exceed their initial scale by this factor.
_BLOW_UP = 1e6


@eqx.filter_jit
def loss_rate(dynamics: AbstractDynamics, t: Scalar, state: State) -> Scalar:
    """⟨g, df̃/dt⟩/(‖g‖‖df̃/dt‖): positive where the predicted loss increases.

    With a weight decay, numerator and denominator include the penalty's rate of change.
    """
    if not dynamics.truncated:
        return jnp.zeros_like(t)
    g, velocity, penalty = dynamics.output_rates(t, state)
    size = jnp.linalg.norm(g.ravel()) * jnp.linalg.norm(velocity.ravel())
    size = size + jnp.abs(penalty)
    safe = jnp.where(size > 0, size, 1)
    return jnp.where(size > 0, (jnp.vdot(g, velocity) + penalty) / safe, 0)


def first_rise(ts: Float[Array, " s"], rates: Float[Array, " s"]) -> Scalar:
    """The time when `rates` first exceeds zero, interpolated between two steps."""
    # A rate that is zero up to rounding error, as at a perfect fit, is not a rise.
    rises = jnp.isfinite(ts) & (rates > jnp.finfo(rates.dtype).eps ** 0.5)
    after = jnp.argmax(rises)
    before = jnp.maximum(after - 1, 0)
    below = jnp.minimum(rates[before], 0)
    rise = rates[after] - below
    share = jnp.where(rises[after], -below / jnp.where(rise > 0, rise, 1), 0)
    first = ts[before] + share * (ts[after] - ts[before])
    return jnp.where(rises[after], first, jnp.inf)


def from_first(flags: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Whether a flag is set at a time or before it."""
    return jax.lax.cummax(flags.astype(jnp.int32)).astype(bool)


def with_nan(tree: PyTree[Array], lost: Bool[Array, " T"]) -> PyTree[Array]:
    """`tree` of values at T times, NaN where they are `lost`."""

    def kept(leaf: Array) -> Array:
        return jnp.where(jnp.expand_dims(lost, range(1, leaf.ndim)), jnp.nan, leaf)

    return jax.tree.map(kept, tree)


def blow_up(dynamics: AbstractDynamics) -> Callable[..., Bool[Array, ""]]:
    """A diffrax event condition: the outputs far exceed the scale of the problem."""
    limit = largest_outputs(dynamics, dynamics.outputs(dynamics.initial_state()))

    @eqx.filter_jit
    def condition(t: Scalar, state: State, args: Any, **_: Any) -> Bool[Array, ""]:
        return jnp.max(jnp.abs(dynamics.outputs(state))) > limit

    return condition


def largest_outputs(
    dynamics: AbstractDynamics, start: Float[Array, "m *out"]
) -> Scalar:
    """The limit for all entries of the outputs, given those at θ₀, `start`."""
    slope = dynamics.problem.n_train * dynamics.output_gradient(start)
    return _BLOW_UP * (jnp.max(jnp.abs(start)) + jnp.max(jnp.abs(slope)))


def warn_of_window(
    label: str, note: str, valid_until: Any, successful: Any, last_time: Any
) -> None:
    """Warn once, at the user's line, if the window was left."""
    if np.isinf(valid_until):
        return
    lost = "" if successful else f", and from t = {last_time:.4g} on they are NaN"
    warn(
        f"the {label} left its window at t = {valid_until:.4g}: its predicted loss "
        "increases there, unlike that of gradient flow. Later values are not valid "
        f"predictions"
        f"{lost}; see Solution.valid_until.{note}"
    )


# A warning is issued where the estimated error passes this share of the change.
_WARN_SHARE = 0.5


@eqx.filter_jit
def first_inaccurate(
    ts: Float[Array, " T"], shares: Float[Array, " T"], valid_until: Scalar
) -> Scalar:
    """The first of `ts` at which the estimated error calls for a warning; ∞ if there is
    none, or if the window was left: that has a warning of its own."""
    inaccurate = shares > _WARN_SHARE
    first = jnp.where(jnp.any(inaccurate), ts[jnp.argmax(inaccurate)], jnp.inf)
    return jnp.where(jnp.isinf(valid_until), first, jnp.inf)


def warn_of_error(label: str, clock: str, note: str, inaccurate_from: Any) -> None:
    """Warn once, at the user's line, if the estimated error is large; `clock` precedes
    the time or step."""
    if np.isinf(inaccurate_from):
        return
    warn(
        f"the {label} has an estimated error of more than {_WARN_SHARE:.0%} of the "
        f"change that it predicts, from {clock}{inaccurate_from:.4g} on; see "
        "Solution.error_estimate. Give a higher order, earlier times or a wider "
        f"network.{note}",
        AccuracyWarning,
    )
