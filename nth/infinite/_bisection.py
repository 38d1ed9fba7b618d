"""Bisection by a fixed number of steps, which can be compiled and mapped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._custom_types import Scalar


def bisect(
    goes_on: Callable[[Scalar], Any],
    low: Scalar,
    high: Scalar,
    steps: int,
    between: Callable[[Scalar, Scalar], Scalar],
) -> Scalar:
    """Where `goes_on` changes, which is true at `low` and false at `high`; `between` is
    the mean of two points."""

    def narrower(_: Any, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        middle = between(*ends)
        on = goes_on(middle)
        return jnp.where(on, middle, ends[0]), jnp.where(on, ends[1], middle)

    return between(*jax.lax.fori_loop(0, steps, narrower, (low, high)))


def arithmetic(low: Scalar, high: Scalar) -> Scalar:
    return (low + high) / 2


def geometric(low: Scalar, high: Scalar) -> Scalar:
    return jnp.sqrt(low) * jnp.sqrt(high)
