"""Memory: what there is, and what a network's points take."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import psutil

from ._network import OutputFunction
from ._types import Inputs, Params


def available_bytes() -> int:
    """Bytes free on the default device."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return psutil.virtual_memory().available


def activation_bytes(apply: OutputFunction, params: Params, x: Any) -> int:
    """Bytes that a reverse pass keeps for each further point, `x` being one."""

    def kept(points: int) -> int:
        xs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((points, *leaf.shape), leaf.dtype), x
        )

        def residuals(params: Params, xs: Inputs) -> object:
            return jax.vjp(partial(apply.over, xs=xs), params)[1]

        held = jax.tree.leaves(eqx.filter_eval_shape(residuals, params, xs))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in held)

    return max(1, kept(2) - kept(1))


def parameter_bytes(params: Params) -> int:
    """Bytes of one copy of the parameters."""
    leaves = jax.tree.leaves(params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
