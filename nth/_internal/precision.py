"""The precision of matrix products in float32.

GPUs multiply float32 matrices in TF32 by default, with 10 bits of mantissa, and TPUs in
bfloat16, with 7: too few for kernels, for series in them and for step-size control.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def full_precision(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """`function` with matrix products in the precision of their operands, unless the
    user has set `jax_default_matmul_precision`."""

    @functools.wraps(function)
    def in_full_precision(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        if jax.config.jax_default_matmul_precision is not None:  # pyright: ignore
            return function(*args, **kwargs)
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return in_full_precision
