"""A Rosenbrock method for stiff solves of the dense hierarchy."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..._custom_types import Scalar
from ..._dynamics.dense import DenseHierarchy, Levels
from . import rodas5p
from .abstract_rosenbrock import (
    AbstractRosenbrock,
    RosenbrockCoefficients,
    weighted_sum,
)
from .dense_newton import Flat, NewtonMatrix, slope_at, times, unflatten


class DenseRosenbrock(AbstractRosenbrock):
    """Rodas5P for a [`nth.DenseHierarchy`][]: for stiff equations and long times.

    An L-stable Rosenbrock method of order 5 with an error estimate of order 4
    (Steinebach 2023). A step costs 8 evaluations of the vector field and one LU
    factorization of n·C equations, whatever the level. The Jacobian is exact, for any
    loss.

    Kernels are taken to be symmetric in their first two slots, as those of a network
    are. Derivatives are right along changes that keep that symmetry, as all changes of
    parameters and inputs do, but not with respect to a single entry of a kernel.

    **Arguments:**

    - `dynamics`: the hierarchy that is solved, the same as in the `terms`.
    """

    dynamics: DenseHierarchy
    coefficients: ClassVar[RosenbrockCoefficients] = rodas5p.COEFFICIENTS
    evaluations_per_step: ClassVar[int] = rodas5p.STAGES

    def stages(
        self, terms: Any, t0: Scalar, y0: Levels, h: Scalar, args: Any
    ) -> list[Levels]:
        return [unflatten(y0, u) for u in _stages(self.dynamics, y0, h)]


def _stages(dynamics: DenseHierarchy, y0: Levels, h: Scalar) -> list[Flat]:
    """u_1, …, u_8 of a step of size h."""
    a = h * rodas5p.GAMMA
    newton = NewtonMatrix(dynamics, y0, a)
    start = newton.levels[:-1]
    zero = jax.tree.map(jnp.zeros_like, start)
    stages: list[Flat] = []
    for row, coupling in zip(rodas5p.A, rodas5p.C, strict=True):
        y = weighted_sum(row, stages, start)
        g = slope_at(dynamics, y[0])
        b = weighted_sum([rodas5p.GAMMA * c for c in coupling], stages, zero)
        # Of the vector field, level p−1 is −K⁽ᵖ⁾ · g, which `solve` adds.
        lower = [
            k - a * times(above, g) for k, above in zip(b[:-1], y[1:], strict=True)
        ]
        stages.append(newton.solve((*lower, b[-1]), g))
    return stages
