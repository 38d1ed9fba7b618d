"""The precision of matrix products in float32.

GPUs and TPUs multiply float32 matrices in fewer bits by default (relative errors of
about 1e-3): too few for kernels, for series in them and for step-size control.
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
