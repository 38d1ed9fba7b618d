"""The number of nodes of Gaussian integrals, and errors if it is not sufficient."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._internal.validation import is_traced, require, require_integer
from .._network.finiteness import checked_finite

# A pair of points takes about 2·nodes² activations in each layer.
_MOST_NODES, _WHY_NODES = 10_001, "as the time grows as its square"
# The numbers that are tried if none is given; the first is used where none can be.
_NODES = (161, 321, 641, 1281)
# The largest relative change of a mean when the spacing of the nodes is doubled: the
# error itself is then below 1e-8.
_MAX_CHANGE = 1e-3
# For an analytic activation twice the nodes square the change; a kink halves it.
_POWER = 1.5


def sufficient_nodes(
    nodes: Any, arguments: Any, change: Callable[[int], Float[Array, ""]] | None
) -> tuple[int, Float[Array, ""] | None]:
    """`nodes`, or the number for which the `change` is small enough, and the change;
    `change` is `None` where all moments are in closed form."""
    if nodes is not None:
        nodes = require_integer("nodes", nodes, 9, _MOST_NODES, _WHY_NODES)
        if nodes % 2 == 0:
            raise ValueError(
                "nodes must be odd, so that every second node can be used; got "
                f"{nodes}."
            )
    if change is None:
        return nodes or _NODES[0], None
    first = _NODES[0] if nodes is None else nodes
    amount = change(first)
    if nodes is not None or is_traced(arguments):
        return first, amount
    now = float(amount)
    for count in (*_NODES[1:], None):
        if now < _tolerance(amount.dtype):
            return first, amount
        if count is None or not math.isfinite(now):
            break
        before, amount = now, change(count)
        first, now = count, float(amount)
        if now > before**_POWER:
            break
    return first, amount


def require_enough_nodes(
    kernels: Sequence[Array], change: Float[Array, ""] | None, nodes: int
) -> tuple[Array, ...]:
    """`kernels`, finite, if the relative `change` with the nodes is small enough."""
    message = (
        f"activation is too rough or too steep for sums over {nodes} nodes in each "
        "direction: give more nodes if it is smooth; of activations with a kink only "
        '"relu" can be used (nth.softplus is a smooth one).'
    )
    if change is not None:
        enough = change < _tolerance(change.dtype)
        kernels = [require(kernel, enough, message) for kernel in kernels]
    cure = "rescale x1, x2, sigma_w, sigma_a or sigma_b."
    return checked_finite("kernels", kernels, cure)


def _tolerance(dtype: DTypeLike) -> float:
    return max(_MAX_CHANGE, 1000 * float(jnp.finfo(dtype).eps))
