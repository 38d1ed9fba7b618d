"""Points in blocks: one block after another, each as large as memory should hold."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ._errors import is_traced
from ._memory import activation_bytes
from ._network import OutputFunction
from ._problem import Problem
from ._types import Params

# What one block of points may hold by default: near the size of a processor's cache,
# or, on an accelerator, enough to fill it.
_BLOCK_BYTES = {"cpu": 2**26}
_BLOCK_BYTES_ELSEWHERE = 2**30


def in_blocks(
    function: Callable[[Shaped[Array, "b *in"]], Float[Array, "b *out"]],
    x: Shaped[Array, "points *in"],
    size: int,
) -> Float[Array, "points *out"]:
    """`function` of `x`, in blocks of `size` points."""
    if len(x) <= size:
        return function(x)
    outputs = jnp.moveaxis(jax.lax.map(function, as_blocks(x, size)), 0, 1)
    return outputs.reshape(-1, *outputs.shape[2:])[: len(x)]


def counted_rows(rows: int, size: int) -> Bool[Array, "k b"]:
    """Which rows of `as_blocks` are not copies."""
    size = min(size, rows)
    count = -(-rows // size)
    return (jnp.arange(size * count) < rows).reshape(size, count).T


def as_blocks(rows: Shaped[Array, "rows ..."], size: int) -> Shaped[Array, "k b ..."]:
    """Rows in blocks of `size`, the last filled up with copies of the last row.

    A block takes every k-th row: rows sharded over devices are so in each block.
    """
    size = min(size, len(rows))
    count = -(-len(rows) // size)
    spare = count * size - len(rows)
    filled = jnp.pad(rows, [(0, spare)] + [(0, 0)] * (rows.ndim - 1), "edge")
    return jnp.moveaxis(filled.reshape(size, count, *rows.shape[1:]), 0, 1)


def default_block(
    apply: OutputFunction, params: Params, problem: Problem, order: int
) -> int:
    """Points to a block, the blocks of the training points all about as large.

    The budget is of one device: points that are shared out have as many times more.
    """
    budget = _BLOCK_BYTES.get(jax.default_backend(), _BLOCK_BYTES_ELSEWHERE)
    one = activation_bytes(apply, params, problem.x_train[0])
    shares = _shares(problem.x_train)
    most = shares * max(1, budget // (2 * order * one))
    blocks = -(-problem.n_train // most)
    return shares * -(-problem.n_train // (blocks * shares))


def _shares(rows: Array) -> int:
    """Over how many devices the rows of an array are shared out."""
    if is_traced(rows) or rows.sharding.is_fully_replicated:
        return 1
    return len(rows) // rows.sharding.shard_shape(rows.shape)[0]
