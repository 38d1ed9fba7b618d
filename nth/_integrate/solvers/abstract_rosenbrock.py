"""What Rosenbrock methods share: the sums over stages, and their interpolation."""

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..._custom_types import Scalar, State

if TYPE_CHECKING:
    # A type checker would take Equinox's alias for an instance variable.
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class RosenbrockCoefficients(NamedTuple):
    """A method in the form without products of matrices with vectors (Hairer & Wanner,
    *Solving Ordinary Differential Equations II*, section IV.7), with h the step:

        (I − hγJ) u_i = hγ F(y₀ + Σ_{j<i} a_ij u_j) + γ Σ_{j<i} c_ij u_j,
        y₁ = y₀ + Σ_j b_j u_j,          error estimate Σ_j error_j u_j,
        y(t₀ + θh) = (1−θ) y₀ + θ y₁ + θ(1−θ) Σ_k θᵏ Σ_j d_kj u_j.
    """

    order: int
    gamma: float
    a: Sequence[Sequence[float]]
    c: Sequence[Sequence[float]]
    b: Sequence[float]
    error: Sequence[float]
    d: Sequence[Sequence[float]]


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


class AbstractRosenbrock(diffrax.AbstractAdaptiveSolver):
    """A Rosenbrock method, whose linear equations a subclass solves."""

    coefficients: AbstractClassVar[RosenbrockCoefficients]
    evaluations_per_step: AbstractClassVar[int]
    term_structure: ClassVar[Any] = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., RosenbrockInterpolation]] = (
        RosenbrockInterpolation
    )

    @abc.abstractmethod
    def stages(
        self, terms: Any, t0: Scalar, y0: State, h: Scalar, args: Any
    ) -> list[State]:
        """u_1, u_2, … of a step of size h."""

    def order(self, terms: Any) -> int:
        return self.coefficients.order

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> None:
        return None

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: State,
        args: Any,
        solver_state: None,
        made_jump: Any,
    ) -> tuple[State, State, dict[str, Any], None, diffrax.RESULTS]:
        del solver_state, made_jump
        u = self.stages(terms, t0, y0, t1 - t0, args)
        zero = jax.tree.map(jnp.zeros_like, y0)
        y1 = weighted_sum(self.coefficients.b, u, y0)
        error = weighted_sum(self.coefficients.error, u, zero)
        d = tuple(weighted_sum(row, u, zero) for row in self.coefficients.d)
        dense_info = {"y0": y0, "y1": y1, "d": d}
        return y1, error, dense_info, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return terms.vf(t0, y0, args)


def weighted_sum(weights: Sequence[float], stages: list[Any], start: Any) -> Any:
    """`start` plus the sum of the stages with these weights."""
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0:
            start = jax.tree.map(lambda y, u, w=float(weight): y + w * u, start, stage)
    return start
