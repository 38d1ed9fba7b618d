"""K⁽⁴⁾ of a chain of layers at its training slots, in blocks of its first slot.

In the notation of `mlp_kernels` it is a sum of two halves,

    K⁽⁴⁾[a, b, c, d] = U_a[b, c, d] + U_b[a, c, d],
    U_a[b, c, d] = v_ac·v_bd + v_ab·v_cd + T_a[b, c, d],

so each product v·v is formed once for each row a, and T_a, which is symmetric in its
three slots, from pairs of two of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._internal.validation import is_traced
from .._network.dense_layers import Layer
from .mlp_derivatives import Changes, Slots
from .mlp_kernels import Chain, between_changes, slots_from


def half_of_fourth(chain: Chain, start: Any, size: int) -> Float[Array, "rows b c d"]:
    """U_a at `size` training slots a from `start` on, of a chain `with_changes`."""
    layers, train = chain.layers, chain.train
    assert chain.changes is not None
    moved = chain.changes[0]
    rows = slots_from(train, start, size, 0)
    rows_moved = slots_from(moved, start, size, 0)
    v = between_changes(layers, rows, rows_moved, train, moved)
    return jnp.swapaxes(v, 1, 2) + v + _third_derivatives(layers, train, rows_moved)


class _Row(NamedTuple):
    """What T_a takes of one layer, for each slot along whose gradient a is changed."""

    neurons: tuple[Array, Array] | None  # z and third_order, slots fan_out
    weight: tuple[Array, Array] | None  # λ̇_b·λ_c and s ẋ_b·x_c, slots slots


def _third_derivatives(
    layers: Sequence[Layer], slots: Slots, moved: Changes
) -> Float[Array, "rows b c d"]:
    """T_a[b, c, d], from the sums over neurons and weights for all pairs b ≤ c."""
    parts = []
    for layer, at, change in zip(layers, slots, moved, strict=True):
        neurons = weight = None
        if change.z is not None:
            neurons = (change.z, change.third_order)
        if change.inputs is not None and change.deltas is not None:
            inner = layer.weight_rate * (change.inputs @ at.inputs.T)
            weight = (change.deltas @ at.deltas.T, inner)
        parts.append(_Row(neurons, weight))
    number = len(slots[0].inputs)
    first, second = np.triu_indices(number)
    place = np.zeros((number, number), int)
    place[first, second] = place[second, first] = np.arange(len(first))

    def of_row(row: list[_Row]) -> Float[Array, "b c d"]:
        pairs = jnp.zeros((len(first), number), slots[0].inputs.dtype)
        for part in row:
            if part.neurons is not None:
                z, third = part.neurons
                product = third[first] * z[second] + third[second] * z[first]
                pairs += 0.5 * (product @ z.T)
            if part.weight is not None:
                outer, inner = part.weight
                pairs += outer[first] * inner[second] + outer[second] * inner[first]
        third = pairs[place]
        return third + jnp.swapaxes(third, 1, 2) + jnp.moveaxis(third, 2, 0)

    # Row by row, so that the intermediate arrays stay in the cache.
    return jax.lax.map(of_row, parts)


def add_exchanged(
    out: Float[Array, "rows b c d"], number: int
) -> Float[Array, "rows b c d"]:
    """`out` with U_b[a, c, d] added to U_a[b, c, d], for its first `number` rows; in
    place if it is donated."""
    if is_traced(out):
        train = out[:number]
        return out.at[:number].set(train + jnp.swapaxes(train, 0, 1))
    return _added_in_place(out, number)


@eqx.filter_jit(donate="all")
def _added_in_place(out: Array, number: int) -> Array:
    pairs = jnp.stack(jnp.triu_indices(number), axis=1)
    plane = (1, 1, *out.shape[2:])

    def add(i: Array, out: Array) -> Array:
        a, b = pairs[i]
        total = jax.lax.dynamic_slice(out, (a, b, 0, 0), plane)
        total = total + jax.lax.dynamic_slice(out, (b, a, 0, 0), plane)
        out = jax.lax.dynamic_update_slice(out, total, (a, b, 0, 0))
        return jax.lax.dynamic_update_slice(out, total, (b, a, 0, 0))

    return jax.lax.fori_loop(0, len(pairs), add, out)
