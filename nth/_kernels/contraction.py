"""Kernels contracted with vectors in some of their slots, without being formed.

Contraction with v is one derivative along J(θ)ᵀv, for any number of slots.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._internal.precision import full_precision
from .._internal.validation import as_array, require_finite, require_order
from .._network.base import trainable
from .._network.finiteness import require_finite_result
from .._network.memory import require_memory
from .._problem.inputs import count
from .._problem.problem import Problem
from .assembly import closed_form
from .costs import (
    closed_columns_at_once,
    directions_at_once,
    held_bytes,
    split_block,
)
from .evaluation import Points, points_of
from .hierarchy_operator import (
    TensorFunction,
    along_jacobian,
    lift,
    require_forward_mode,
    slot_gradient,
)


@full_precision
def contract(
    network: Callable[..., Any],
    problem: Problem,
    vectors: Sequence[ArrayLike | None],
    *,
    order: int,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Float[Array, "m ..."]:
    """K⁽ʳ⁾ summed against vectors in its later slots, without forming it.

        K⁽ʳ⁾[a, v, w, …] = Σ K⁽ʳ⁾[a, b, c, …] v[b] w[c] …

    With a vector in each slot it costs about 2^r gradients, in time linear in n. The
    order of the slots matters from the third slot on.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
    - `vectors`: one for each of the r − 1 later slots, shape `(n, *out)`, or `None` for
        a slot that stays.
    - `order`: r, from 2 to 12.

    **Returns:** shape `(m, *out)`, followed by `(n, *out)` for each slot that stays.

    Memory in addition to the result stays near 256 MiB.

    **Raises:** `ValueError` for a bad order, vectors that do not fit, or a result that
    would not fit in memory.
    """
    order = require_order("order", order)
    points = points_of(trainable(network, problem, filter_spec, learning_rates))
    require_forward_mode(points.apply, points.params, points.x_train, "contraction")
    checked = _checked_vectors(vectors, order, points)
    _require_memory(points, checked)
    contracted = _contracted(points, checked)
    at = (points.apply, points.params, points.x, points.n_train)
    otherwise = (
        "a higher derivative of the network is NaN or infinite at some point, or "
        "vectors are so large that the sum overflows: rescale them."
    )
    require_finite_result("the contraction", contracted, *at, otherwise=otherwise)
    return contracted


def _checked_vectors(
    vectors: Any, order: int, points: Points
) -> tuple[Float[Array, "n *out"] | None, ...]:
    if not isinstance(vectors, Sequence) or len(vectors) != order - 1:
        raise ValueError(
            f"vectors must be a sequence of {order - 1} arrays or None, one for each "
            f"later slot of a kernel of order {order}; got {vectors!r}."
        )
    return tuple(
        None if v is None else checked_slots("vectors", v, points, ()) for v in vectors
    )


def checked_slots(
    argument: str, value: Any, points: Points, leading: tuple[int, ...]
) -> Array:
    """`value` as finite floats of shape `(*leading, n, *out)`."""
    output = points.output
    expected = (*leading, points.n_train, *output.shape)
    array = require_finite(argument, as_array(argument, value), "replace them.")
    if array.shape != expected:
        raise ValueError(
            f"{argument}: got shape {array.shape}, and the training slots require "
            f"{expected}."
        )
    return array.astype(output.dtype)


def _require_memory(points: Points, vectors: Sequence[Array | None]) -> None:
    """Raise `ValueError` if the slots that stay would not fit in memory."""
    free = sum(v is None for v in vectors)
    leading = _leading(vectors)
    entries = points.n_rows * points.n_slots**free
    held = held_bytes(points, leading + 1) if leading <= 3 else 0
    require_memory(
        "vectors",
        f"a kernel of {points.n_rows} slots and {free} of {points.n_slots}",
        entries * points.output.dtype.itemsize + held,
        "Give vectors for more of the slots, or use fewer training points or float32.",
    )


def _leading(vectors: Sequence[Array | None]) -> int:
    """The number of slots that stay before the first that is summed."""
    return next((k for k, v in enumerate(vectors) if v is not None), len(vectors))


@eqx.filter_jit
def _contracted(
    points: Points, vectors: tuple[Float[Array, "n *out"] | None, ...]
) -> Float[Array, "m ..."]:
    free, leading = sum(v is None for v in vectors), _leading(vectors)
    out = points.output.shape
    if 0 < leading <= 3 and points.layers(points.params) is not None:
        kernel = _by_columns(points, vectors, leading, free)
    else:
        tensor = partial(points.apply.over, xs=points.x)
        kernel = _summed(tensor, points, vectors, len(vectors) + 1)(points.params)
    return kernel.reshape(count(points.x), *out, *(points.n_train, *out) * free)


def _by_columns(
    points: Points, vectors: Sequence[Array | None], leading: int, free: int
) -> Float[Array, "rows ..."]:
    """The contraction of a kernel in closed form, in blocks of its last slot."""
    rest, n_slots = vectors[leading:], points.n_slots
    # Each derivative doubles the memory of a block.
    size = max(1, closed_columns_at_once(points, leading + 1) >> len(rest))

    def columns(start: Array | int, size: int) -> Array:
        tensor = closed_form(points, leading + 1, start, size)
        assert tensor is not None
        return _summed(tensor, points, rest, len(vectors) + 1)(points.params)

    if size >= n_slots:
        return columns(0, n_slots)

    def write(i: Array, kernel: Array) -> Array:
        start = jnp.minimum(i * size, n_slots - size)  # the last block overlaps
        block = columns(start, size)
        block = block.reshape(
            *kernel.shape[:leading], size, *kernel.shape[leading + 1 :]
        )
        return jax.lax.dynamic_update_slice_in_dim(kernel, block, start, leading)

    shape = (points.n_rows,) + (n_slots,) * free
    empty = jnp.zeros(shape, points.output.dtype)
    return jax.lax.fori_loop(0, -(-n_slots // size), write, empty)


def _summed(
    tensor: TensorFunction,
    points: Points,
    vectors: Sequence[Array | None],
    order: int,
) -> TensorFunction:
    """`tensor` with a later slot for each of `vectors`, summed or not."""
    size = directions_at_once(points, order)
    sizes = list(split_block(size, points.n_slots, sum(v is None for v in vectors)))
    for v in vectors:
        if v is None:
            gradient = slot_gradient(points.apply, points.x_train, points.rates)
            tensor = lift(tensor, gradient, points.n_slots, sizes.pop(0))
        else:
            tensor = along_jacobian(
                tensor, points.apply, points.x_train, v, points.rates
            )
    return tensor
