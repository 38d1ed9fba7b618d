"""K⁽²⁾ of many points, tile after tile: those on and above the diagonal.

The tiles below it are transposes, so half of the work suffices, and no more than the
gradients of two tiles is held besides the kernel, which is in memory or in a file.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs
from .._internal.progress import delayed_bar
from .._network.memory import tree_bytes
from .._problem.inputs import count, take
from .evaluation import Points, layers_at
from .factored_gradients import GradientFunction
from .gradient_products import Gradients
from .jacobian import by_rows
from .mlp_derivatives import At, Slots, at_slots, pairs

# Bytes that the gradients of a tile may take, unless `block_size` is given, and slots
# of a tile: products of such matrices run at full speed, and more take more memory.
_BLOCK_BYTES = 2**27
_TILE = 1024
# Bytes that the gradients of tiles that are used again may take.
_HELD_BYTES = 2**28


class Tile(NamedTuple):
    """A block of K⁽²⁾, and its first slots."""

    row: int
    column: int
    block: Float[Array, "rows columns"]
    mirrored: bool
    """Whether its transpose is a block, too."""


def tile_points(points: Points, block_size: int | None) -> int:
    """How many points a side of a tile has."""
    size, most = points.output.size, points.n_train
    number = _TILE // size
    if block_size:
        number = block_size // size
    elif points.layers(points.params) is None:
        gradients = GradientFunction(points, most)
        number = min(number, _BLOCK_BYTES // gradients.bytes_per_point(points))
    number = max(1, min(number, most))
    return -(-most // -(-most // number))  # of equal size


def tiles(points: Points, number: int, progress: bool) -> Iterator[Tile]:
    """The tiles of K⁽²⁾, of `number` points on a side or, of the last rows, fewer."""
    sides = [(points.x_train, True)] * points.with_train + [(points.x_extra, False)]
    corners = [
        (x, square, row, column)
        for x, square in sides
        for row in range(0, count(x), number)
        for column in range(row if square else 0, points.n_train, number)
    ]
    options: Any = {"iterable": corners, "leave": False, "disable": not progress}
    held = _Held(points, number)
    size, before = points.output.size, points.n_train * points.with_train
    for x, square, row, column in delayed_bar(desc="K(2)", **options):
        side = min(number, count(x))
        row = min(row, count(x) - side)  # the last tile overlaps
        column = min(column, points.n_train - number)
        rows = held.train(row) if square else held.extra(row, side)
        block = _product((points, rows, held.train(column)))
        first = row if square else row + before
        yield Tile(first * size, column * size, block, square)


class _Held:
    """Gradients of tiles: all of the training points', if they fit, or the last ones.

    Two are in use at once.
    """

    def __init__(self, points: Points, number: int):
        self.points, self.number = points, number
        self.at = _of_gradients if layers_at(points) is None else _of_layers
        self.of_train: dict[int, Any] = {}
        self.of_extra: tuple[int, Any] = (-1, None)

    def train(self, start: int) -> Any:
        """Of training points from `start` on."""
        if start in self.of_train:
            self.of_train[start] = self.of_train.pop(start)  # the last in use
            return self.of_train[start]
        inputs = (self.points, self.points.x_train, jnp.asarray(start))
        gradients = self.at(inputs, self.number)
        most = max(2, _HELD_BYTES // tree_bytes(gradients))
        while len(self.of_train) >= most:
            del self.of_train[next(iter(self.of_train))]
        self.of_train[start] = gradients
        return gradients

    def extra(self, start: int, side: int) -> Any:
        """Of `side` extra points from `start` on."""
        if self.of_extra[0] != start:
            inputs = (self.points, self.points.x_extra, jnp.asarray(start))
            self.of_extra = (start, self.at(inputs, side))
        return self.of_extra[1]


Start = tuple[Points, Inputs, Int[Array, ""]]


@eqx.filter_jit
def _of_gradients(start: Start, number: int) -> Gradients:
    points, x, first = start
    gradients = GradientFunction(points, points.n_train)
    return gradients.over(points.params, take(x, first + jnp.arange(number)))


@eqx.filter_jit
def _of_layers(start: Start, number: int) -> Slots:
    points, x, first = start
    layers = points.layers(points.params)
    assert layers is not None
    x = take(x, first + jnp.arange(number))
    slots = at_slots(layers, x, points.output.size)
    return [At(at.inputs, at.deltas, None, None, None, None) for at in slots]


@eqx.filter_jit
def _product(
    inputs: tuple[Points, Slots | Gradients, Slots | Gradients],
) -> Float[Array, "rows columns"]:
    points, rows, columns = inputs
    if not isinstance(rows, Gradients):
        layers = points.layers(points.params)
        assert layers is not None
        assert not isinstance(columns, Gradients)
        parts = [pairs(*each) for each in zip(layers, rows, columns, strict=True)]
        return sum((p * q for p, q in parts[1:]), parts[0][0] * parts[0][1])
    assert isinstance(columns, Gradients)
    gradients = GradientFunction(points, points.n_train)
    rated = gradients.times_rates(columns, points.rates)
    per_row = len(columns) * gradients.bytes_per_pair(points)
    most = max(1, _BLOCK_BYTES // max(1, per_row))
    return by_rows(lambda part: gradients.products(part, rated), rows, most)


def filled(points: Points, number: int, progress: bool) -> Float[Array, "rows ..."]:
    """K⁽²⁾ in memory, from tiles of `number` points."""
    output = points.output
    out = jnp.zeros((points.n_rows, points.n_slots), output.dtype)
    for tile in tiles(points, number, progress):
        corner = (jnp.asarray(tile.row), jnp.asarray(tile.column))
        out = _write((tile.block, *corner, tile.mirrored), out)
        if progress:
            out.block_until_ready()
    return _reshaped(out, (-1, *output.shape, points.n_train, *output.shape))


@eqx.filter_jit(donate="all")
def _reshaped(out: Array, shape: tuple[int, ...]) -> Array:
    return out.reshape(shape)  # in place, as it is compiled


@eqx.filter_jit(donate="all-except-first")
def _write(inputs: tuple[Array, Array, Array, bool], out: Array) -> Array:
    block, row, column, mirrored = inputs
    out = jax.lax.dynamic_update_slice(out, block, (row, column))
    if mirrored:
        out = jax.lax.dynamic_update_slice(out, block.T, (column, row))
    return out
