"""The spectral radius of a Jacobian, by power iteration on differences of f."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..._custom_types import Scalar, State
from ..._dynamics.base import two_norm

_MOST_ITERATIONS = 30

# Iteration ends where the estimate changes by less than this, relatively.
_TOLERANCE = 0.02


class SpectralState(eqx.Module):
    """An estimate of the spectral radius of ∂f/∂y and the vector that it is for."""

    radius: Scalar
    vector: State
    evaluations: Int[Array, ""]


def first_estimate(
    vf: Any, t: Scalar, y: State, args: Any, rate: State
) -> SpectralState:
    """The estimate at the start, from f(y) itself."""
    vf, t, y, args, rate = _stopped((vf, t, y, args, rate))

    def unfinished(carry: Any) -> Array:
        state, change = carry
        return (state.evaluations < _MOST_ITERATIONS) & (change > _TOLERANCE)

    def iterate(carry: Any) -> Any:
        state, _ = carry
        new = _iterate(vf, t, y, args, rate, state)
        change = jnp.abs(new.radius - state.radius) / new.radius
        return new, jnp.where(new.radius > 0, change, 0)

    zero = jnp.zeros_like(two_norm(rate))
    state = SpectralState(zero, rate, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, iterate, (state, jnp.ones_like(zero)))[0]


def refreshed(
    vf: Any,
    t: Scalar,
    y: State,
    args: Any,
    rate: State,
    state: SpectralState,
    iterations: Int[Array, ""],
) -> SpectralState:
    """The estimate after more iterations, at another y."""
    vf, t, y, args, rate, state = _stopped((vf, t, y, args, rate, state))

    def iterate(_: Array, state: SpectralState) -> SpectralState:
        return _iterate(vf, t, y, args, rate, state)

    return jax.lax.fori_loop(0, iterations, iterate, state)


def _iterate(
    vf: Any, t: Scalar, y: State, args: Any, rate: State, state: SpectralState
) -> SpectralState:
    """ρ ≈ ‖f(y + δ) − f(y)‖/‖δ‖, and f(y + δ) − f(y) the next vector."""
    norm = two_norm(state.vector)
    # The size of δ: small beside y, or, where y = 0, beside what f changes it by in
    # unit time, but above its rounding errors.
    size = jnp.sqrt(jnp.finfo(norm.dtype).eps) * (two_norm(y) + two_norm(rate))
    scale = jnp.where(norm > 0, size / jnp.where(norm > 0, norm, 1), 0)
    moved = jax.tree.map(lambda y, v: y + scale * v, y, state.vector)
    vector = jax.tree.map(jnp.subtract, vf(t, moved, args), rate)
    radius = jnp.where(size > 0, two_norm(vector) / jnp.where(size > 0, size, 1), 0)
    usable = (radius > 0) & jnp.isfinite(radius)
    vector = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), vector, state.vector
    )
    return SpectralState(
        jnp.where(usable, radius, state.radius), vector, state.evaluations + 1
    )


def _stopped(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree
    )
