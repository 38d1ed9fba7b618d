"""An exponential multistep method for stiff solves of the dense hierarchy."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._custom_types import Scalar
from ..._dynamics.dense import DenseHierarchy, Levels
from .dense_newton import Flat, flatten, times, unflatten
from .multistep import (
    History,
    LinearPart,
    Remainder,
    forget,
    push,
    remainder,
    start,
    with_linear_part,
    without_close_times,
)


class ExponentialInterpolation(diffrax.AbstractLocalInterpolation):
    """The step's own formula at times inside it."""

    dynamics: DenseHierarchy
    t0: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    y0: Levels
    linear: LinearPart
    remainder: Remainder
    pending: Array

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> Levels:
        del left
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        levels = flatten(self.dynamics, (*self.y0, self.dynamics.levels[-1]))
        h = self.t1 - self.t0
        theta = (t0 - self.t0) / jnp.where(h == 0, 1, h)
        lower, s = _advance(levels, self.linear, self.remainder, h, theta)
        top = levels[-2] - times(levels[-1], s + self.pending)
        return unflatten(self.y0, (*lower, top))


class DenseExponential(diffrax.AbstractAdaptiveSolver):
    """An exponential Adams method for a [`nth.DenseHierarchy`][].

    For stiff equations and long times. A step costs one evaluation of the vector field,
    with a single product with K⁽ᵖ⁾. Let f₀ be the outputs at the step's start, and K⁽ʳ⁾
    and H the kernels and ∂g/∂f at an earlier state, renewed every `reuse` steps by an
    eigendecomposition of n·C rows. The hierarchy reads

        dK̃⁽ʳ⁾/dt = −K⁽ʳ⁺¹⁾ · H(f̃ − f₀) + N_r,
        N_r = −K̃⁽ʳ⁺¹⁾ · g + K⁽ʳ⁺¹⁾ · H(f̃ − f₀).

    The linear part is solved exactly. N_r, which is small where the kernels move
    slowly, is replaced by a polynomial through its values at the last steps (predictor)
    and at the step's end besides (corrector). The error estimate is the change of the
    corrector when the oldest value is left out. So the cost follows the motion of the
    kernels, not the stiffness: at level 2 the squared error is solved exactly in any
    step. It is a variable-step form of the exponential Adams methods in Hochbruck &
    Ostermann, *Exponential integrators*, Acta Numerica 19, 2010, section 2.5. The first
    steps are of lower order, with fewer values.

    At levels above 2 the entries of the highest kernel in the state, K̃⁽ᵖ⁻¹⁾, are those
    of the predictor; the correction enters with the product of the next step.

    Kernels are taken to be symmetric in their first two slots, as those of a network
    are. Derivatives are right along changes that keep that symmetry, as all changes of
    parameters and inputs do, but not with respect to a single entry of a kernel.

    **Arguments:**

    - `dynamics`: the hierarchy that is solved, the same as in the `terms`.
    - `points`: the number of steps that the predictor goes through.
    - `reuse`: for how many steps a linear part, with its eigendecomposition, serves.
    """

    dynamics: DenseHierarchy
    points: int = eqx.field(static=True, default=5)
    reuse: int = eqx.field(static=True, default=8)
    term_structure: ClassVar[Any] = diffrax.ODETerm
    evaluations_per_step: ClassVar[int] = 1

    @property
    def interpolation_cls(self) -> Callable[..., ExponentialInterpolation]:  # pyright: ignore
        return partial(ExponentialInterpolation, dynamics=self.dynamics)

    def order(self, terms: Any) -> int:
        return self.points + 1

    def init(self, terms: Any, t0: Any, t1: Any, y0: Levels, args: Any) -> History:
        levels = flatten(self.dynamics, (*y0, self.dynamics.levels[-1]))
        return start(self.dynamics, levels, t0, self.points)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Levels,
        args: Any,
        solver_state: History,
        made_jump: Any,
    ) -> tuple[Levels, Levels, dict[str, Any], History, diffrax.RESULTS]:
        del made_jump
        dynamics, h, pending = self.dynamics, t1 - t0, solver_state.pending
        levels = flatten(dynamics, (*y0, dynamics.levels[-1]))
        one = jnp.ones_like(h)
        state = without_close_times(solver_state, h)
        state = with_linear_part(dynamics, levels, state, self.reuse)
        linear = state.linear
        old = remainder(levels, linear, state, t0, h)
        lower, s = _advance(levels, linear, old, h, one)
        predicted = (*lower, levels[-2] - times(levels[-1], s + pending))
        history = push(dynamics, state, predicted, t1)
        new = remainder(levels, linear, history, t0, h)
        lower, s_new = _advance(levels, linear, new, h, one)
        oldest = eqx.tree_at(lambda h: h.count, history, history.count - 1)
        fewer = remainder(levels, linear, oldest, t0, h)
        lower_fewer, s_fewer = _advance(levels, linear, fewer, h, one)
        top, top_error, lacking = _top(
            levels, predicted[-1], s + pending, s_new - s, s_new - s_fewer
        )
        error = (*map(jnp.subtract, lower, lower_fewer), top_error)
        info = {"y0": y0, "linear": linear, "remainder": new, "pending": pending}
        return (
            unflatten(y0, (*lower, top)),
            unflatten(y0, error),
            info,
            forget(history, lacking),
            diffrax.RESULTS.successful,
        )

    def func(self, terms: Any, t0: Any, y0: Levels, args: Any) -> Levels:
        return terms.vf(t0, y0, args)


def _top(
    levels: Flat,
    predicted: Array,
    s: Float[Array, " slots"],
    correction: Float[Array, " slots"],
    difference: Float[Array, " slots"],
) -> tuple[Array, Array, Float[Array, " slots"]]:
    """K̃⁽ᵖ⁻¹⁾ at the end of a step, its error estimate, and what it lacks, over −K⁽ᵖ⁾.

    `predicted` is that of the predictor, whose ∫ g is `s`. The corrector adds the
    `correction`, which has the error estimate `difference`.
    """
    if len(levels) == 2:  # level 2: K⁽ᵖ⁾ is the NTK, and one more product is cheap
        change = -times(levels[-1], correction)
        return (
            predicted + change,
            -times(levels[-1], difference),
            jnp.zeros_like(correction),
        )
    # One product with K⁽ᵖ⁾ for each step: the estimate is in proportion to ∫ g.
    size = _norm(s)
    share = _norm(difference) / jnp.where(size > 0, size, 1)
    return predicted, share * (predicted - levels[-2]), correction


def _advance(
    levels: Flat, linear: LinearPart, remainder: Remainder, h: Scalar, theta: Scalar
) -> tuple[Flat, Float[Array, " slots"]]:
    """K̃⁽ʳ⁾ for r = 1 … p−2 at a time θh after the start, and ∫ g."""
    size = linear.eigenvalues.size
    if remainder.derivatives:
        forcing = remainder.derivatives[0][:, :size]
    else:  # level 2
        forcing = -remainder.slope @ levels[1][:size].T
    w = linear.integral(forcing, h, theta)
    rows = zip(levels[:-2], linear.kernels, remainder.derivatives, strict=True)
    lower = tuple(
        k + h * _integral(rate, theta) - times(above, w) for k, above, rate in rows
    )
    return lower, w + h * _integral(remainder.slope, theta)


def _integral(coefficients: Float[Array, "k ..."], theta: Scalar) -> Array:
    """∫ Σ_i c_i θ^i dθ from 0 to θ."""
    total = jnp.zeros_like(coefficients[0])
    for i in reversed(range(len(coefficients))):  # Horner's rule
        total = total * theta + coefficients[i] / (i + 1)
    return total * theta


def _norm(vector: Float[Array, " slots"]) -> Scalar:
    """The Euclidean norm, with a derivative of zero at zero."""
    square = jnp.sum(vector**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
