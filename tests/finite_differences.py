"""Derivatives by central differences."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def central_slopes(
    function: Callable[..., jax.Array], point: tuple[jax.Array, ...], h: float = 1e-5
) -> list[Any]:
    """The derivative of a scalar function in each of its scalar arguments."""
    slopes = []
    for k in range(len(point)):
        ends = [
            function(*(p + s * h * (i == k) for i, p in enumerate(point)))
            for s in (1, -1)
        ]
        slopes.append(np.asarray(ends[0] - ends[1]) / (2 * h))
    return slopes
