"""Points as inputs of networks of infinite width."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._internal.validation import as_array, require_finite, require_supported_dtype


def as_points(argument: str, value: Any) -> Float[Array, "n d"]:
    array = as_array(argument, value)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{argument} must have shape (points, d), one input in each row; got "
            f"{array.shape}."
        )
    return _as_floats(argument, array)


def as_inputs(argument: str, value: Any) -> Float[Array, "n c *space"]:
    array = as_array(argument, value)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(
            f"{argument} must have shape (points, d) or (points, channels, "
            f"*positions); got {array.shape}."
        )
    return _as_floats(argument, array)


def _as_floats(argument: str, array: Array) -> Array:
    require_supported_dtype(argument, array.dtype)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    return require_finite(argument, array)


def matching_inputs(
    x2: Float[Array, "n2 *in2"], x1: Float[Array, "n1 *in1"]
) -> Float[Array, "n2 *in2"]:
    """`x2`; raises an error unless its inputs have the shape and dtype of `x1`."""
    if x2.shape[1:] != x1.shape[1:] or x2.dtype != x1.dtype:
        sizes = [x.shape[1] if x.ndim == 2 else x.shape[1:] for x in (x2, x1)]
        raise ValueError(
            f"x2 has inputs of size {sizes[0]} and dtype {x2.dtype}, x1 of size "
            f"{sizes[1]} and dtype {x1.dtype}: they must be equal."
        )
    return x2
