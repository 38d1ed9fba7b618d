"""A Rosenbrock method for stiff solves of the dense hierarchy."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..._custom_types import Scalar, State
from ..._dynamics.dense import DenseHierarchy, Levels
from . import rodas5p
from .dense_newton import Flat, NewtonMatrix, flatten, slope_at, times, unflatten


class RosenbrockInterpolation(diffrax.AbstractLocalInterpolation):
    """The continuous extension of a Rosenbrock method, continuous from step to step.

    y(t₀ + θh) = (1−θ) y₀ + θ y₁ + θ(1−θ) (d₁ + θ(d₂ + …)).
    """

    t0: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    y0: State
    y1: State
    d: tuple[State, ...]

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> State:
        del left
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        span = self.t1 - self.t0
        theta = (t0 - self.t0) / jnp.where(span == 0, 1, span)

        def at(y0: Array, y1: Array, *d: Array) -> Array:
            correction = jnp.zeros_like(y0)
            for term in reversed(d):
                correction = term + theta * correction
            return (1 - theta) * y0 + theta * y1 + theta * (1 - theta) * correction

        return jax.tree.map(at, self.y0, self.y1, *self.d)


class DenseRosenbrock(diffrax.AbstractAdaptiveSolver):
    """Rodas5P for a [`nth.DenseHierarchy`][]: for stiff equations and long times.

    An L-stable Rosenbrock method of order 5 with an error estimate of order 4
    (Steinebach 2023). A step costs 8 evaluations of the vector field and one LU
    factorization of n·C equations, whatever the level: see
    [`NewtonMatrix`][nth._integrate.solvers.dense_newton.NewtonMatrix]. The Jacobian is
    exact, for any loss.

    Kernels are taken to be symmetric in their first two slots, as those of a network
    are. Derivatives are right along changes that keep that symmetry, as all changes of
    parameters and inputs do, but not with respect to a single entry of a kernel.

    **Arguments:**

    - `dynamics`: the hierarchy that is solved, the same as in the `terms`.
    """

    dynamics: DenseHierarchy
    term_structure: ClassVar[Any] = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., RosenbrockInterpolation]] = (
        RosenbrockInterpolation
    )
    evaluations_per_step: ClassVar[int] = rodas5p.STAGES

    def order(self, terms: Any) -> int:
        return rodas5p.ORDER

    def init(self, terms: Any, t0: Any, t1: Any, y0: Levels, args: Any) -> None:
        return None

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Levels,
        args: Any,
        solver_state: None,
        made_jump: Any,
    ) -> tuple[Levels, Levels, dict[str, Any], None, diffrax.RESULTS]:
        del solver_state, made_jump
        u = _stages(self.dynamics, y0, t1 - t0)
        start = flatten(self.dynamics, y0)
        zero = jax.tree.map(jnp.zeros_like, start)
        y1 = unflatten(y0, _sum(rodas5p.B, u, start))
        d = tuple(unflatten(y0, _sum(row, u, zero)) for row in rodas5p.D)
        dense_info = {"y0": y0, "y1": y1, "d": d}
        return y1, unflatten(y0, u[-1]), dense_info, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Levels, args: Any) -> Levels:
        return terms.vf(t0, y0, args)


def _stages(dynamics: DenseHierarchy, y0: Levels, h: Scalar) -> list[Flat]:
    """u_1, …, u_8 of a step of size h."""
    a = h * rodas5p.GAMMA
    newton = NewtonMatrix(dynamics, y0, a)
    start = newton.levels[:-1]
    zero = jax.tree.map(jnp.zeros_like, start)
    stages: list[Flat] = []
    for row, coupling in zip(rodas5p.A, rodas5p.C, strict=True):
        y = _sum(row, stages, start)
        g = slope_at(dynamics, y[0])
        b = _sum([rodas5p.GAMMA * c for c in coupling], stages, zero)
        # Of the vector field, level p−1 is −K⁽ᵖ⁾ · g, which `solve` adds.
        lower = [
            k - a * times(above, g) for k, above in zip(b[:-1], y[1:], strict=True)
        ]
        stages.append(newton.solve((*lower, b[-1]), g))
    return stages


def _sum(weights: Any, stages: list[Flat], start: Flat) -> Flat:
    """`start` plus the sum of the stages with these weights."""
    for weight, stage in zip(weights, stages, strict=True):
        start = tuple(k + float(weight) * u for k, u in zip(start, stage, strict=True))
    return start
