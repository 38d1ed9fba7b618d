"""Points as inputs of fully connected networks."""

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
    require_supported_dtype(argument, array.dtype)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    return require_finite(argument, array)
