"""Costs of solvers, by the numbers of steps that were measured with the default
tolerances, for `solver="auto"` and `method="auto"`."""

import math
from typing import Any

import jax.numpy as jnp

from .._problem.losses import AbstractLoss, SquaredError

# Up to this multiple of 1/ρ the accuracy and not the stability of Tsit5 limits its
# steps, and it takes the fewest evaluations (benchmarks/stiff_matrix_free.py).
NOT_STIFF = 100.0

# In multiplications. Reading a number of K⁽ᵖ⁾ takes the time of 20; of n·C rows, an
# eigendecomposition takes about 125 (n·C)³ and serves 8 steps, an LU factorization
# 2 (n·C)³.
READING, _EIGEN, _FACTORS = 20, 125 / 8, 2

# In evaluations. A step of `LowRankRosenbrock` takes 4, their derivatives along the
# state and 4 products with the Jacobian, besides the kernel.
_LOW_RANK_STEP = 12

# Of `LowRankRosenbrock`, to any time.
_STEPS_IN_SINGLE, _STEPS_IN_DOUBLE = 100, 500

# Up to so many slots n·C, a kernel in each step costs less than explicit steps through
# the gradient of an averaged loss, which rises within 1e-3.
MOST_SLOTS = 1024

# Evaluations of ROCK4 per 1/ρ: where the vector field is not linear, its first stages,
# which move far along stiff components, limit the step size.
_NONLINEAR = 0.15


def is_linear(order: int, loss: AbstractLoss) -> bool:
    """Whether the vector field of a level is affine in its state."""
    return order == 2 and isinstance(loss, SquaredError)


def implicit_cost(size: int, slots: int, order: int, loss: AbstractLoss) -> float:
    """The multiplications of a stiff dense solve, with a K⁽ᵖ⁾ of `size` entries.

    Its steps hardly depend on the last time.
    """
    if order > 2:
        return 80.0 * (READING * size + _EIGEN * slots**3)
    if is_linear(order, loss):
        return 15.0 * (READING * size + _EIGEN * slots**3)
    return 80.0 * (8 * READING * size + _FACTORS * slots**3)


def explicit_evaluations(stiffness: float, *, linear: bool = True) -> float:
    """The evaluations of Tsit5 or ROCK4 up to ρT = `stiffness`."""
    if stiffness < NOT_STIFF:
        return 100 + 2 * stiffness
    evaluations = 150 + 20 * math.sqrt(stiffness)
    return evaluations if linear else max(evaluations, _NONLINEAR * stiffness)


def low_rank_evaluations(slots: int, dtype: Any, layered: bool) -> float:
    """The evaluations that take the time of a solve by `LowRankRosenbrock`.

    A kernel of n·C slots takes about one evaluation for a chain of dense layers. By
    gradients it takes n·C of them and (n·C)² P multiplications, beside 6 n P of an
    evaluation. Beyond `MOST_SLOTS` it is ∞.
    """
    if slots > MOST_SLOTS:
        return math.inf
    steps = _STEPS_IN_DOUBLE if jnp.finfo(dtype).eps < 1e-10 else _STEPS_IN_SINGLE
    return steps * (_LOW_RANK_STEP + (1.0 if layered else slots / 6))
