"""Matrices over pairs of points that are computed tile by tile."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

Matrices = tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]


def by_tiles(
    of_tile: Callable[[list[Array], list[int]], Matrices],
    points: tuple[int, int],
    most: int,
    dtype: DTypeLike,
    *,
    symmetric: bool,
) -> Matrices:
    """Two matrices, in place, from tiles with at most `most` points on each side.

    `of_tile` takes the first point on each side and the number of points on each. Only
    tiles on or above the diagonal are computed of matrices that are `symmetric`.
    """
    counts = [-(-number // most) for number in points]
    shape = [-(-number // count) for number, count in zip(points, counts, strict=True)]
    tiles = np.indices(counts).reshape(2, -1).T
    if symmetric:
        tiles = tiles[tiles[:, 0] <= tiles[:, 1]]

    def add(matrices: Matrices, tile: Int[Array, " 2"]) -> tuple[Matrices, None]:
        # The last tile of a side overlaps with the previous one.
        corner = [
            jnp.minimum(index * size, number - size)
            for index, size, number in zip(tile, shape, points, strict=True)
        ]
        parts: Matrices = of_tile(corner, shape)
        if symmetric:
            central = tile[0] == tile[1]
            parts = jax.lax.cond(central, symmetrized, lambda parts: parts, parts)
        matrices = written(matrices, parts, corner)
        if symmetric:
            transposed = [part.T for part in parts]
            matrices = written(matrices, transposed, corner[::-1])
        return matrices, None

    zeros = jnp.zeros(points, dtype)
    return jax.lax.scan(add, (zeros, zeros), jnp.asarray(tiles))[0]


def symmetrized(parts: Matrices) -> Matrices:
    """Rounding depends on the order of a pair."""
    first, second = ((part + part.T) / 2 for part in parts)
    return first, second


def written(
    matrices: Matrices, parts: Sequence[Array], corner: Sequence[Any]
) -> Matrices:
    """The matrices with `parts` at `corner`."""
    first, second = (
        jax.lax.dynamic_update_slice(matrix, part, corner)
        for matrix, part in zip(matrices, parts, strict=True)
    )
    return first, second
