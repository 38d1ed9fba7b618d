"""Evaluation of points in blocks that bound the memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from .._custom_types import Inputs, Params
from .._internal.validation import is_traced
from .._network.base import OutputFunction
from .._network.memory import activation_bytes
from .._problem.inputs import count, take
from .._problem.problem import Problem

# The default memory of one block of points: about the size of a processor's cache,
# or enough to keep an accelerator busy.
_BLOCK_BYTES = {"cpu": 2**26}
_BLOCK_BYTES_ELSEWHERE = 2**30


def in_blocks(
    function: Callable[[Inputs], Float[Array, "b *out"]], x: Inputs, size: int
) -> Float[Array, "points *out"]:
    """`function` of `x`, in blocks of `size` points."""
    if count(x) <= size:
        return function(x)
    outputs = jnp.moveaxis(jax.lax.map(function, as_blocks(x, size)), 0, 1)
    return outputs.reshape(-1, *outputs.shape[2:])[: count(x)]


def counted_rows(rows: int, size: int) -> Bool[Array, "k b"]:
    """A mask of the rows of `as_blocks` that are not padding."""
    size = min(size, rows)
    blocks = -(-rows // size)
    return (jnp.arange(size * blocks) < rows).reshape(size, blocks).T


def as_blocks(rows: Inputs, size: int) -> PyTree[Shaped[Array, "k b ..."]]:
    """Rows in blocks of `size`, padded with copies of the last row.

    A block takes every k-th row, so that rows sharded over devices stay sharded.
    """
    total = count(rows)
    size = min(size, total)
    blocks = -(-total // size)

    def split(leaf: Array) -> Array:
        spare = blocks * size - total
        filled = jnp.pad(leaf, [(0, spare)] + [(0, 0)] * (leaf.ndim - 1), "edge")
        return jnp.moveaxis(filled.reshape(size, blocks, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, rows)


def default_block(
    apply: OutputFunction, params: Params, problem: Problem, order: int
) -> int:
    """The number of points in a block, for training blocks of about equal size.

    The memory budget is that of one device, times the number of devices that share the
    points.
    """
    budget = _BLOCK_BYTES.get(jax.default_backend(), _BLOCK_BYTES_ELSEWHERE)
    per_point = activation_bytes(apply, params, take(problem.x_train, 0))
    shares = _shares(problem.x_train)
    most = shares * max(1, budget // (2 * order * per_point))
    blocks = -(-problem.n_train // most)
    return shares * -(-problem.n_train // (blocks * shares))


def _shares(x: Inputs) -> int:
    """The number of devices over which the points are sharded."""
    rows = jax.tree.leaves(x)[0]
    if is_traced(rows) or rows.sharding.is_fully_replicated:
        return 1
    return len(rows) // rows.sharding.shard_shape(rows.shape)[0]
