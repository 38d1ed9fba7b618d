"""Kinks of functions: points where a derivative jumps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._internal.jaxpr import primitives

# Primitives whose derivative jumps.
_KINKS = frozenset(
    """
    abs argmax argmin ceil clamp cummax cummin floor max min reduce_max reduce_min round
    select_n sign sort
    """.split()  # noqa: SIM905
)

_SAMPLES = 257
_REFINEMENTS = 2
# A refinement divides second differences of a smooth function by 65,536, and does not
# change those at a jump.
_SMOOTH = 1e-2


def has_primitives_with_kinks(function: Callable[..., Any], *inputs: Any) -> bool:
    """Whether `function` uses primitives whose derivative jumps."""
    return not _KINKS.isdisjoint(primitives(jax.make_jaxpr(function)(*inputs).jaxpr))


def has_kinks(function: Callable[..., Array], params: PyTree, *inputs: Any) -> bool:
    """Whether the derivative of `function(params, *inputs)` jumps near `params`.

    A pytree as `function`, such as a network, is compiled once for all of its kind.

    Smooth functions may also use primitives with kinks (softmax subtracts a maximum).
    The derivative is therefore sampled on a line through `params`, with changes of
    their size, and again closely around its largest second difference.
    """
    if not has_primitives_with_kinks(function, params, *inputs):
        return False
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    changes = map(_change, leaves, keys)
    direction = jax.tree.unflatten(structure, list(changes))
    return bool(_jumps(function, params, direction, inputs))


def _change(leaf: Array, key: Array) -> Array:
    size = jnp.sqrt(jnp.mean(jnp.square(leaf)))
    scale = jnp.where(size > 0, size, 1)
    return scale * jax.random.normal(key, leaf.shape, leaf.dtype)


@eqx.filter_jit
def _jumps(
    function: Callable[..., Array],
    params: PyTree,
    direction: PyTree,
    inputs: tuple[Any, ...],
) -> Array:
    def derivative(s: Array) -> Array:
        def along(s: Array) -> Array:
            moved = jax.tree.map(lambda p, v: p + s * v, params, direction)
            return function(moved, *inputs)

        return jax.jvp(along, (s,), (jnp.ones_like(s),))[1]

    def second_differences(s: Float[Array, " samples"]) -> Float[Array, " inner"]:
        values = jax.lax.map(derivative, s).reshape(len(s), -1)
        change = values[2:] - 2 * values[1:-1] + values[:-2]
        return jnp.max(jnp.abs(change), axis=1)

    dtype = jax.tree.leaves(params)[0].dtype
    samples = jnp.linspace(-1, 1, _SAMPLES, dtype=dtype)
    before = largest = second_differences(samples)
    for _ in range(_REFINEMENTS):
        at = jnp.argmax(largest)
        samples = jnp.linspace(samples[at], samples[at + 2], _SAMPLES, dtype=dtype)
        largest = second_differences(samples)
    return jnp.max(largest) > _SMOOTH * jnp.max(before)
