"""Kernels formed block after block of their last slot: by layers, or by the operator D.

A chain of layers gives K⁽²⁾, K⁽³⁾ and K⁽⁴⁾ as products of matrices. For any other
network K⁽²⁾ is a product of gradients, by reverse mode, and K⁽³⁾ of gradients and their
derivatives. D lifts the last of these to what is above it, by forward mode. It lifts
the outputs if the gradients of all points do not fit in a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Params
from .._internal.progress import delayed_bar
from .._internal.validation import is_traced
from .._network.dense_layers import Layer
from .._network.memory import activation_bytes, tree_bytes
from .._problem.inputs import count, take
from .evaluation import Points
from .gradient_products import Pairing
from .hierarchy_operator import (
    TensorFunction,
    along,
    lift,
    require_forward_mode,
    slot_gradient,
)
from .jacobian import jacobian_products
from .mlp_kernels import Chain, chain_at, fourth, second, third
from .output_pairs import output_pairs
from .third_products import ThirdProducts, slots_at_once, third_tensor
from .tiles import filled, tile_points

# Bytes that the directions worked on at once may take, unless `block_size` is given.
_BLOCK_BYTES = 2**28
# Bytes that the changes of slots that no direction belongs to may take.
_EXTRA_BYTES = 2**30

# Entries of K⁽²⁾, and multiplications if it were a plain product of Jacobians, up to
# which one compiled function computes all of it, in a second or two.
_SMALL_KERNEL = 2**23
_SHORT_WORK = 2 * 10**10

_OF_CHAIN = {2: second, 3: third, 4: fourth}

# (data, the first of them, how many) ↦ columns of the last slot
Columns = Callable[[Any, Int[Array, ""], int], Float[Array, "rows ..."]]


def form(
    points: Points,
    order: int,
    block_size: int | None,
    progress: bool,
    pairing: Pairing = "full",
) -> tuple[Float[Array, "rows ..."], ...]:
    """K⁽¹⁾ … K⁽ᵖ⁾; of K⁽²⁾, the `pairing` of outputs."""
    if pairing != "full":
        outputs = _outputs_at(points)
        return outputs, output_pairs(points, pairing, block_size, progress)
    if order == 2 and not is_traced(points) and _takes_a_moment(points):
        return _second_at_once(points, block_size)
    if order == 2 and not is_traced(points) and points.with_train:
        number = tile_points(points, block_size)
        if number < points.n_train:
            return _outputs_at(points), filled(points, number, progress)
    return _formed(points, order, block_size, progress)


def _takes_a_moment(points: Points) -> bool:
    """Whether K⁽²⁾ takes so little time that no bar is needed, by count."""
    entries = points.n_rows * points.n_slots
    return entries <= _SMALL_KERNEL and entries * points.n_params <= _SHORT_WORK


@eqx.filter_jit
def _second_at_once(
    points: Points, block_size: int | None
) -> tuple[Float[Array, "rows ..."], ...]:
    """K⁽¹⁾ and K⁽²⁾ by one compiled function, whose calls cost least."""
    return _formed(points, 2, block_size, progress=False)


def _formed(
    points: Points, order: int, block_size: int | None, progress: bool
) -> tuple[Float[Array, "rows ..."], ...]:
    output = points.output
    rows, n_slots = points.n_rows, points.n_slots
    layers = _layers_at(points)
    chains = [] if layers is None else _chains(layers, points)
    if layers is None and order > 2:
        purpose = f"order {order} for a network that is no chain of dense layers"
        require_forward_mode(points.apply, points.params, points.x_train, purpose)
    tensors = [_outputs_at(points)]
    for r in range(2, order + 1):
        out = jnp.zeros((rows,) + (n_slots,) * (r - 1), output.dtype)
        if layers is not None and r in _OF_CHAIN:
            out = _of_chains(chains, out, block_size, progress)
        elif r == 2:
            columns, size = jacobian_products(points, block_size or 0)
            out = _fill(columns, points, out, 0, size, progress)
        elif not chains and r == 3 and (most := slots_at_once(points, r)):
            size = min(block_size or most, most)
            out = _fill(ThirdProducts(size), points, out, 0, n_slots, progress)
        else:
            together = 0
            if chains:  # D lifts K⁽⁴⁾, all of whose columns one direction takes
                size = max(1, _columns_at_once(chains[0][1], 4) // n_slots >> (r - 4))
                depth = r - max(_OF_CHAIN)
            elif together := slots_at_once(points, r):  # D lifts K⁽³⁾
                size, depth = max(1, together // n_slots), r - 3
                together = min(together, block_size or together)
            else:
                size, depth = directions_at_once(points, r), r - 1
            *inner, last = split_block(block_size or size, n_slots, depth)
            lifted = _Lifted(tuple(inner), together)
            out = _fill(lifted, points, out, 0, last, progress)
        tensors.append(out.reshape(*tensors[-1].shape, -1, *output.shape))
    return tuple(tensors)


def forming_cost(points: Points, order: int) -> int:
    """Multiplications that K⁽²⁾ … K⁽ᵖ⁾ take, those that do not run as products of
    matrices counted twice.

    For a chain of layers with P parameters and N neurons, 2P for each pair of slots
    forth and back, and about (2, 2, 3)·N for each entry of K⁽²⁾, K⁽³⁾, K⁽⁴⁾, doubled by
    each D beyond. For any other network, P for each entry of K⁽²⁾ and 2^r P for each
    of K⁽ʳ⁾ above it.
    """
    slots = points.n_slots
    rows = slots + count(points.x_extra) * points.output.size
    entries = rows * slots ** (order - 1)
    layers = points.layers(points.params)
    if layers is None:
        return (1 if order == 2 else 2**order) * points.n_params * entries
    neurons = sum(len(layer.weight) for layer in layers)
    passes = 2 * points.n_params * (rows * slots if order > 2 else rows)
    return passes + (2, 2, 3)[min(order, 4) - 2] * neurons * entries * 2 ** max(
        0, order - 4
    )


def held_bytes(points: Points, order: int) -> int:
    """Bytes that forming kernels holds beside them: the changes of K⁽⁴⁾."""
    layers = points.layers(points.params) if order >= 4 else None
    return 0 if layers is None else 4 * points.n_slots**2 * _changed_bytes(layers)


def _chains(layers: tuple[Layer, ...], points: Points) -> list[tuple[int, Chain]]:
    """The chain at the points, with the first row of each: in parts, if the changes of
    extra slots are many."""
    size, n_slots, extra = points.output.size, points.n_slots, points.x_extra
    one = 8 * n_slots * size * _changed_bytes(layers)
    most = max(1, _EXTRA_BYTES // one)
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


def _changed_bytes(layers: tuple[Layer, ...]) -> int:
    """Bytes of one number for each neuron."""
    return sum(layer.weight.shape[0] * layer.weight.dtype.itemsize for layer in layers)


_chain_at = eqx.filter_jit(chain_at)


@eqx.filter_jit
def _layers_at(points: Points) -> tuple[Layer, ...] | None:
    return points.layers(points.params)


@eqx.filter_jit
def _outputs_at(points: Points) -> Float[Array, "points *out"]:
    return points.apply.over(points.params, points.x)


@eqx.filter_jit
def _with_changes(chain: Chain) -> Chain:
    return chain.with_changes()


def _of_chains(
    chains: list[tuple[int, Chain]], out: Array, block_size: int | None, progress: bool
) -> Array:
    r, n_slots = out.ndim, out.shape[-1]
    for row, chain in chains:
        size = block_size or _columns_at_once(chain, r)
        data = _with_changes(chain) if r == 4 else chain
        out = _fill(_OF_CHAIN[r], data, out, row, min(size, n_slots), progress)
    return out


def _columns_at_once(chain: Chain, r: int) -> int:
    """How many columns of K⁽ʳ⁾ keep within `_BLOCK_BYTES`."""
    n_slots, n_extra = chain.counts
    rows, itemsize = n_slots + n_extra, chain.layers[0].weight.dtype.itemsize
    neurons = _changed_bytes(chain.layers) // itemsize
    numbers = {
        2: 4 * rows,
        3: 5 * rows * (neurons + n_slots),
        4: rows * n_slots * (2 * neurons + 10 * n_slots),
    }
    return max(1, _BLOCK_BYTES // (numbers[r] * itemsize))


class _Lifted(eqx.Module):
    """Columns by the operator D, which lifts the kernel with an algorithm of its own.

    `inner` holds how many slots of each later index, the innermost first, go together;
    `together` how many of K⁽³⁾, 0 to lift the outputs.
    """

    inner: tuple[int, ...] = eqx.field(static=True)
    together: int = eqx.field(static=True)

    def __call__(
        self, points: Points, start: Int[Array, ""], size: int
    ) -> Float[Array, "rows ..."]:
        gradient = slot_gradient(points.apply, points.x_train, points.rates)
        n_slots = points.n_slots
        tensor, known = closed_form(points, max(_OF_CHAIN)), max(_OF_CHAIN)
        if tensor is None and self.together:
            tensor, known = third_tensor(points, self.together), 3
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

    `start` and `size` are the columns of its last slot, all of them if left out.
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


def closed_columns_at_once(points: Points, r: int) -> int:
    """How many columns of `closed_form` keep within `_BLOCK_BYTES`."""
    layers = points.layers(points.params)
    assert layers is not None
    x = (points.x_train, points.x_extra)
    chain = chain_at(layers, *x, points.output.size, points.with_train)
    return min(points.n_slots, _columns_at_once(chain, r))


def _fill(
    columns: Columns, data: Any, out: Array, row: int, size: int, progress: bool
) -> Array:
    """Columns into `out` from `row` on, block after block of its last slot."""
    starts = range(0, out.shape[-1], size)
    if is_traced(data, out):

        def step(i: Array, out: Array) -> Array:
            return _fill_block((columns, data, row, i * size), out, size)

        if len(starts) == 1:  # XLA runs convolutions in a loop on one core
            return step(jnp.zeros((), int), out)
        return jax.lax.fori_loop(0, len(starts), step, out)
    options: Any = {"iterable": starts, "leave": False, "disable": not progress}
    bar = delayed_bar(desc=f"K({out.ndim})", **options)
    for start in bar:
        inputs = (columns, data, jnp.asarray(row), jnp.asarray(start))
        out = _fill_block_in_place(inputs, out, size)
        if progress and not is_traced(out):
            out.block_until_ready()
    return out


def _fill_block(inputs: Any, out: Array, size: int) -> Array:
    columns, data, row, start = inputs
    start = jnp.minimum(start, out.shape[-1] - size)  # the last block overlaps
    block = columns(data, start, size)
    corner = (row, *[0] * (out.ndim - 2), start)
    return jax.lax.dynamic_update_slice(out, block, corner)


_fill_block_in_place = eqx.filter_jit(_fill_block, donate="all-except-first")


def split_block(block_size: int, n_slots: int, depth: int) -> tuple[int, ...]:
    """How many slots of each later index go together, the innermost first."""
    sizes = []
    for _ in range(depth):
        sizes.append(max(1, min(n_slots, block_size)))
        block_size //= sizes[-1]
    return tuple(sizes)


def directions_at_once(points: Points, order: int) -> int:
    """How many directions keep within `_BLOCK_BYTES`: each holds parameters and
    activations of its own, and each further derivative doubles them."""
    apply, params, x = points.apply, points.params, points.x
    one = tree_bytes(params) + count(x) * activation_bytes(apply, params, take(x, 0))
    return max(1, _BLOCK_BYTES // (2 ** (order - 1) * one))
