"""Operations and memory of forming kernels, and the block sizes that follow."""

from .._network.dense_layers import Layer
from .._network.memory import activation_bytes, tree_bytes
from .._problem.inputs import count, take
from .evaluation import Points, forward_cost
from .factored_gradients import GradientFunction
from .mlp_kernels import Chain, chain_at
from .third_products import slots_at_once

# Maximum bytes of the directions processed at once, unless `block_size` is given.
_BLOCK_BYTES = 2**28


def forming_cost(points: Points, order: int) -> int:
    """Multiplications that K⁽²⁾ … K⁽ᵖ⁾ take, counted twice outside products of
    matrices.

    For a chain of layers with P parameters and N neurons: 2P for the forward and
    backward pass of each pair of slots, and about (2, 2, 3)·N for each entry of K⁽²⁾,
    K⁽³⁾, K⁽⁴⁾, doubled by each further D.
    """
    slots, rows = points.n_slots, points.n_rows
    layers = points.layers(points.params)
    if layers is None:
        return _cost_by_gradients(points, order)
    entries = rows * slots ** (order - 1)
    neurons = sum(len(layer.weight) for layer in layers)
    passes = 2 * points.n_params * (rows * slots if order > 2 else rows)
    per_entry = (2, 2, 3)[min(order, 4) - 2] * neurons * 2 ** max(0, order - 4)
    return passes + per_entry * entries


def _cost_by_gradients(points: Points, order: int) -> int:
    """The same for any other network, with F multiplications at each point.

    K⁽²⁾ takes a forward pass at each point and a backward pass for each output, and the
    products of gradients; K⁽³⁾ the derivatives of these passes along each slot, which
    take twice as long, and two products. Each further D doubles these for each slot. If
    gradients do not fit in a block, D lifts the outputs.
    """
    size, slots = points.output.size, points.n_slots
    n_rows, forward = points.n_rows // size, forward_cost(points)
    if order > 2 and not slots_at_once(points, order):
        return n_rows * slots ** (order - 1) * 2 ** (order - 1) * forward
    gradients = GradientFunction(points, points.n_train)
    passes = n_rows * (1 + 2 * size) * forward
    products = n_rows * points.n_train * gradients.products_per_pair()
    return (passes + products) * (2 * slots) ** (order - 2)


def kernel_bytes(rows: int, n_slots: int, order: int, itemsize: int) -> int:
    """Bytes of K⁽¹⁾ … K⁽ᵖ⁾, with `rows` first slots and `n_slots` in each later one."""
    return sum(rows * n_slots ** (r - 1) for r in range(1, order + 1)) * itemsize


def held_bytes(points: Points, order: int) -> int:
    """Bytes needed in addition to the kernels: the derivatives stored for K⁽⁴⁾."""
    layers = points.layers(points.params) if order >= 4 else None
    return 0 if layers is None else 4 * points.n_slots**2 * neuron_bytes(layers)


def neuron_bytes(layers: tuple[Layer, ...]) -> int:
    """Bytes of one number for each neuron."""
    return sum(layer.weight.shape[0] * layer.weight.dtype.itemsize for layer in layers)


def closed_columns_at_once(points: Points, r: int) -> int:
    """The number of columns of `closed_form` that fit in `_BLOCK_BYTES`."""
    layers = points.layers(points.params)
    assert layers is not None
    x = (points.x_train, points.x_extra)
    chain = chain_at(layers, *x, points.output.size, points.with_train)
    return min(points.n_slots, columns_at_once(chain, r))


def columns_at_once(chain: Chain, r: int) -> int:
    """The number of columns of K⁽ʳ⁾ that fit in `_BLOCK_BYTES`."""
    n_slots, n_extra = chain.counts
    rows, itemsize = n_slots + n_extra, chain.layers[0].weight.dtype.itemsize
    neurons = neuron_bytes(chain.layers) // itemsize
    numbers = {
        2: 4 * rows,
        3: 5 * rows * (neurons + n_slots),
        4: rows * n_slots * (2 * neurons + 10 * n_slots),
    }
    return max(1, _BLOCK_BYTES // (numbers[r] * itemsize))


def rows_at_once(chain: Chain) -> int:
    """The number of rows of a half of K⁽⁴⁾ that fit in `_BLOCK_BYTES`."""
    n_slots, itemsize = chain.counts[0], chain.layers[0].weight.dtype.itemsize
    numbers = (2 * len(chain.layers) + 4) * n_slots**3
    return max(1, _BLOCK_BYTES // (numbers * itemsize))


def split_block(block_size: int, n_slots: int, depth: int) -> tuple[int, ...]:
    """The block size of each later slot, the innermost first."""
    sizes = []
    for _ in range(depth):
        sizes.append(max(1, min(n_slots, block_size)))
        block_size //= sizes[-1]
    return tuple(sizes)


def directions_at_once(points: Points, order: int) -> int:
    """The number of directions that fit in `_BLOCK_BYTES`.

    Each has its own parameters and activations, doubled by each further derivative.
    """
    apply, params, x = points.apply, points.params, points.x
    each = tree_bytes(params) + count(x) * activation_bytes(apply, params, take(x, 0))
    return max(1, _BLOCK_BYTES // (2 ** (order - 1) * each))
