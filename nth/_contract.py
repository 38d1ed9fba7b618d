"""Kernels summed against vectors in some of their slots, without being formed.

A slot summed against v is one derivative along J(θ)ᵀv, however many slots it runs over.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._errors import as_array, require_finite, require_integer
from ._form import closed_form, directions_at_once, split_block
from ._inputs import count
from ._lift import along_jacobian, lift, slot_gradient
from ._points import Points, points_of
from ._problem import Problem


def contract(
    network: Callable[..., Any],
    problem: Problem,
    order: int,
    vectors: Sequence[ArrayLike | None],
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
) -> Float[Array, "m ..."]:
    """K⁽ʳ⁾ summed against vectors in its later slots, without forming it.

        K⁽ʳ⁾[a, v, w, …] = Σ K⁽ʳ⁾[a, b, c, …] v[b] w[c] …

    With a vector in each slot it costs about 2^r gradients, in time linear in n. The
    order of the slots matters from the third on.

    **Arguments:**

    - `network`, `problem`, `filter_spec`: as for [`nth.kernels`][].
    - `order`: r ≥ 2.
    - `vectors`: one for each of the r − 1 later slots, shape `(n, *out)`, or `None` for
        a slot that stays.

    **Returns:** shape `(m, *out)`, followed by `(n, *out)` for each slot that stays.

    **Raises:** `ValueError` for an order below 2 or vectors that do not fit.
    """
    order = require_integer("order", order, 2)
    points = points_of(network, problem, filter_spec)
    return _contracted(points, _checked_vectors(vectors, order, points))


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
            f"{argument}: got shape {array.shape}, and the training slots ask for "
            f"{expected}."
        )
    return array.astype(output.dtype)


@eqx.filter_jit
def _contracted(
    points: Points, vectors: tuple[Float[Array, "n *out"] | None, ...]
) -> Float[Array, "m ..."]:
    n_slots, out = points.n_slots, points.output.shape
    free = sum(v is None for v in vectors)
    leading = next((k for k, v in enumerate(vectors) if v is not None), len(vectors))
    closed = closed_form(points, leading + 1) if 0 < leading <= 3 else None
    tensor = closed or partial(points.apply.over, xs=points.x)
    rest = vectors[leading:] if closed else vectors
    size = directions_at_once(points, len(vectors) + 1)
    sizes = list(split_block(size, n_slots, sum(v is None for v in rest)))
    for v in rest:
        if v is None:
            gradient = slot_gradient(points.apply, points.x_train, points.rates)
            tensor = lift(tensor, gradient, n_slots, sizes.pop(0))
        else:
            tensor = along_jacobian(
                tensor, points.apply, points.x_train, v, points.rates
            )
    slots = (points.n_train, *out) * free
    return tensor(points.params).reshape(count(points.x), *out, *slots)
