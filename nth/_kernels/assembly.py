"""Kernels formed in blocks of their last slot, layer by layer or by the operator D.

A chain of layers gives K⁽²⁾, K⁽³⁾ and K⁽⁴⁾ as products of matrices. For any other
network K⁽²⁾ is a product of gradients, by reverse mode, and K⁽³⁾ one of gradients and
their derivatives, or a sum of second derivatives of the outputs. The operator D lifts
products to the kernels above them, by forward mode; it lifts the outputs if the
gradients of all points do not fit in a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Params
from .._internal.validation import is_traced
from .._network.dense_layers import Layer
from .blocks import filled_in_blocks
from .costs import (
    columns_at_once,
    directions_at_once,
    neuron_bytes,
    rows_at_once,
    split_block,
)
from .evaluation import Points, layers_at
from .hierarchy_operator import (
    TensorFunction,
    along,
    lift,
    require_forward_mode,
    slot_gradient,
)
from .jacobian import jacobian_products
from .local_third import LocalThird, points_at_once
from .mlp_fourth import add_exchanged, half_of_fourth
from .mlp_kernels import Chain, chain_at, fourth, fourth_of_extra, second, third
from .third_products import ThirdProducts, slots_at_once
from .tiles import filled, tile_points

# Maximum bytes of the derivatives at extra slots, along which nothing is trained.
_EXTRA_BYTES = 2**30

# Maximum entries of K⁽²⁾ or K⁽³⁾, and multiplications of products of gradients, for
# which one compiled function computes all kernels, in a second or two.
_SMALL_KERNEL = 2**23
_SHORT_WORK = 2 * 10**10

_OF_CHAIN = {2: second, 3: third, 4: fourth}

# (data, index of the first column, number of columns) ↦ columns of the last slot
Columns = Callable[[Any, Int[Array, ""], int], Float[Array, "rows ..."]]


def form(
    points: Points, order: int, block_size: int | None, progress: bool
) -> tuple[Float[Array, "rows ..."], ...]:
    """K⁽¹⁾ … K⁽ᵖ⁾."""
    if order < 4 and not is_traced(points) and _is_quick(points, order):
        return _formed_in_one_call(points, order, block_size)
    if order == 2 and not is_traced(points) and points.with_train:
        number = tile_points(points, block_size)
        if number < points.n_train:
            return outputs_at(points), filled(points, number, progress)
    return _formed(points, order, block_size, progress)


def _is_quick(points: Points, order: int) -> bool:
    """Whether kernels need no progress bar, by their number of operations."""
    if order > 2 and layers_at(points) is not None:  # several blocks are faster apart
        return False
    entries = points.n_rows * points.n_slots ** (order - 1)
    each = points.n_params if order == 2 else 2**order * points.n_params
    return entries <= _SMALL_KERNEL and entries * each <= _SHORT_WORK


@eqx.filter_jit
def _formed_in_one_call(
    points: Points, order: int, block_size: int | None
) -> tuple[Float[Array, "rows ..."], ...]:
    """The kernels by one compiled function, with the least overhead per call."""
    return _formed(points, order, block_size, progress=False)


def _formed(
    points: Points, order: int, block_size: int | None, progress: bool
) -> tuple[Float[Array, "rows ..."], ...]:
    output = points.output
    rows, n_slots = points.n_rows, points.n_slots
    layers = layers_at(points)
    chains = [] if layers is None else _chains(layers, points)
    if layers is None and order > 2:
        purpose = f"order {order} for a network that is not a chain of dense layers"
        require_forward_mode(points.apply, points.params, points.x_train, purpose)
    tensors = [outputs_at(points)]
    for r in range(2, order + 1):
        out = jnp.zeros((rows,) + (n_slots,) * (r - 1), output.dtype)
        if layers is not None and r in _OF_CHAIN:
            out = _of_chains(chains, out, block_size, progress)
        elif r == 2:
            columns, size = jacobian_products(points, block_size or 0)
            out = _fill(columns, points, out, 0, size, progress)
        else:
            third = None if chains else _third_way(points, r, block_size)
            if third is not None and r == 3:
                out = _fill(third, points, out, 0, n_slots, progress)
            else:
                size, depth = _directions(points, chains, third, r)
                *inner, last = split_block(block_size or size, n_slots, depth)
                lifted = _Lifted(tuple(inner), third)
                out = _fill(lifted, points, out, 0, last, progress)
        tensors.append(out.reshape(*tensors[-1].shape, -1, *output.shape))
    return tuple(tensors)


def _third_way(
    points: Points, r: int, block_size: int | None
) -> LocalThird | ThirdProducts | None:
    """The faster way to K⁽³⁾, r − 3 times differentiated, of a network that is no chain
    of layers; `None` if it does not fit in memory."""
    if most := points_at_once(points, r):
        return LocalThird(min(block_size or most, most))
    if most := slots_at_once(points, r):
        return ThirdProducts(min(block_size or most, most))
    return None


def _directions(
    points: Points,
    chains: list[tuple[int, Chain]],
    third: LocalThird | ThirdProducts | None,
    r: int,
) -> tuple[int, int]:
    """How many directions of D are processed at once, and how often it is applied."""
    if chains:  # to K⁽⁴⁾: each direction needs all of its columns
        at_once = columns_at_once(chains[0][1], 4) // points.n_slots >> (r - 4)
        return max(1, at_once), r - max(_OF_CHAIN)
    if third is not None:
        return max(1, third.together // points.n_slots), r - 3
    return directions_at_once(points, r), r - 1


def _chains(layers: tuple[Layer, ...], points: Points) -> list[tuple[int, Chain]]:
    """Chains at the points, each with the index of its first row.

    There are several if the derivatives at extra slots take more than `_EXTRA_BYTES`.
    """
    size, n_slots, extra = points.output.size, points.n_slots, points.x_extra
    per_point = 8 * n_slots * size * neuron_bytes(layers)
    most = max(1, _EXTRA_BYTES // per_point)
    count = max(1, -(-len(extra) // most))
    width = -(-len(extra) // count)
    chains = []
    for i in range(count):
        first = min(i * width, len(extra) - width)  # the last overlaps
        with_train = points.with_train and i == 0
        x = extra[first : first + width]
        chain = _chain_at(layers, points.x_train, x, size, with_train)
        row = first * size + (n_slots if points.with_train and i else 0)
        chains.append((row, chain))
    return chains


_chain_at = eqx.filter_jit(chain_at)


@eqx.filter_jit
def outputs_at(points: Points) -> Float[Array, "points *out"]:
    return points.apply.over(points.params, points.x)


@eqx.filter_jit
def _with_changes(chain: Chain) -> Chain:
    return chain.with_changes()


def _of_chains(
    chains: list[tuple[int, Chain]], out: Array, block_size: int | None, progress: bool
) -> Array:
    r, n_slots = out.ndim, out.shape[-1]
    for row, chain in chains:
        function, data = _OF_CHAIN[r], chain
        if r == 4:
            function, data = fourth_of_extra, _with_changes(chain)
            if chain.with_train:
                size = block_size or _equal(n_slots, rows_at_once(chain))
                size = min(size, n_slots)
                out = _fill(half_of_fourth, data, out, row, size, progress, axis=0)
                out = add_exchanged(out, n_slots)
                row += n_slots
            if not chain.counts[1]:
                continue
        size = min(block_size or _equal(n_slots, columns_at_once(chain, r)), n_slots)
        out = _fill(function, data, out, row, size, progress)
    return out


def _equal(number: int, most: int) -> int:
    """The size of the fewest blocks of at most `most`, as the last one overlaps."""
    return -(-number // -(-number // most))


class _Lifted(eqx.Module):
    """Columns by the operator D, applied to the highest kernel formed otherwise.

    `inner` holds the block size of each later slot, the innermost first; `third` is the
    way to K⁽³⁾ of a network that is no chain of layers, `None` to lift the outputs.
    """

    inner: tuple[int, ...] = eqx.field(static=True)
    third: LocalThird | ThirdProducts | None

    def __call__(
        self, points: Points, start: Int[Array, ""], size: int
    ) -> Float[Array, "rows ..."]:
        gradient = slot_gradient(points.apply, points.x_train, points.rates)
        n_slots = points.n_slots
        tensor, known = closed_form(points, max(_OF_CHAIN)), max(_OF_CHAIN)
        if tensor is None and self.third is not None:
            tensor, known = self.third.tensor(points), 3
        elif tensor is None:
            tensor, known = partial(points.apply.over, xs=points.x), 1
        for block in self.inner:
            tensor = lift(tensor, gradient, n_slots, block)
        column = partial(along, tensor, gradient, points.params)
        columns = jax.vmap(column, out_axes=-1)(start + jnp.arange(size))
        later = len(self.inner) + known - 1
        return columns.reshape(-1, *[n_slots] * later, size)


def closed_form(
    points: Points, r: int, start: Int[Array, ""] | int = 0, size: int | None = None
) -> TensorFunction | None:
    """θ ↦ K⁽ʳ⁾ of a chain of layers, r = 2, 3, 4; `None` for any other network.

    `start` and `size` select columns of its last slot, by default all of them.
    """
    if points.layers(points.params) is None:
        return None
    x = (points.x_train, points.x_extra)

    def tensor(params: Params) -> Float[Array, "rows ..."]:
        layers = points.layers(params)
        assert layers is not None
        chain = chain_at(layers, *x, points.output.size, points.with_train)
        chain = chain.with_changes() if r == 4 else chain
        return _OF_CHAIN[r](chain, start, size or points.n_slots)

    return tensor


def _fill(
    columns: Columns,
    data: Any,
    out: Array,
    row: int,
    size: int,
    progress: bool,
    axis: int = -1,
) -> Array:
    """Write blocks of training slots into `out` from `row` on: of its last slot, or of
    that in `axis`."""
    corners = [(row, start) for start in range(0, out.shape[-1], size)]
    name = f"K({out.ndim})"
    return filled_in_blocks(
        _fill_block, (columns, data, size, axis), corners, out, name, progress
    )


def _fill_block(
    inputs: tuple[Columns, Any, int, int], corner: Int[Array, " 2"], out: Array
) -> Array:
    columns, data, size, axis = inputs
    row, start = corner
    start = jnp.minimum(start, out.shape[-1] - size)  # the last block overlaps
    at: list[Any] = [row, *[0] * (out.ndim - 1)]
    at[axis] += start
    return jax.lax.dynamic_update_slice(out, columns(data, start, size), at)
