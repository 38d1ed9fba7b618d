"""An exponential multistep method for stiff solves of the dense hierarchy."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._custom_types import Scalar
from ..._dynamics.dense import DenseHierarchy, Levels
from .dense_newton import (
    Flat,
    flatten,
    output_hessian,
    slope_at,
    times,
    times_blocks,
    unflatten,
)
from .phi import double_integral


class LinearPart(eqx.Module):
    """The linear operator of a step: δ ↦ −K̃⁽ʳ⁺¹⁾ · Hδf in row r, at the step's start.

    H is ∂g/∂f without its negative eigenvalues, R its square root, and R K̃⁽²⁾ R on the
    training points has the eigenvalues `rates` and the eigenvectors `modes`.
    """

    root: Float[Array, "n C C"]
    matrix: Float[Array, "slots slots"]
    rates: Float[Array, " slots"]
    modes: Float[Array, "slots slots"]

    def __init__(self, dynamics: DenseHierarchy, state: Levels, ntk: Array):
        blocks = output_hessian(dynamics, state[0])
        self.root = _root(blocks)
        size = blocks.shape[0] * blocks.shape[1]
        rows = times_blocks(ntk[:size], self.root)
        matrix = times_blocks(rows.T, self.root)
        self.matrix = (matrix + matrix.T) / 2
        # `double_integral` has the derivative with respect to the matrix.
        fixed = jax.lax.stop_gradient(self.matrix)
        self.rates, self.modes = jnp.linalg.eigh(fixed)

    def times_hessian(self, rows: Float[Array, "k slots"]) -> Float[Array, "k slots"]:
        """H applied to each row."""
        return times_blocks(times_blocks(rows, self.root), self.root)

    def integral(
        self, forcing: Float[Array, "k slots"], h: Scalar, theta: Scalar
    ) -> Float[Array, " slots"]:
        """W = ∫ H δ dt to the time θh, for dδ/dt = −K̃⁽²⁾ H δ + Σ_i b_i (t/h)^i."""
        scaled, rates = h * self.matrix, h * self.rates
        rooted = times_blocks(forcing, self.root)
        x = double_integral(scaled, rates, self.modes, theta, rooted)
        return h**2 * times_blocks(x[None], self.root)[0]


class History(eqx.Module):
    """Evaluations at the last steps, newest first."""

    ts: Float[Array, " k"]
    outputs: Float[Array, "k all_slots"]
    slopes: Float[Array, "k slots"]
    """g."""

    rates: tuple[Float[Array, "k ..."], ...]
    """dK̃⁽ʳ⁾/dt for r = 1 … p−2."""

    count: Int[Array, ""]
    """How many are known."""

    pending: Float[Array, " slots"]
    """What K̃⁽ᵖ⁻¹⁾ lacks is −K⁽ᵖ⁾ · `pending`."""


class Remainder(eqx.Module):
    """The nonlinear part of a step of size h: coefficients of ((t − t₀)/h)^i."""

    rates: tuple[Float[Array, "k ..."], ...]
    """dK̃⁽ʳ⁾/dt + K̃⁽ʳ⁺¹⁾(t₀) · H(f − f(t₀)) for r = 1 … p−2."""

    slope: Float[Array, "k slots"]
    """g − H(f − f(t₀))."""


class ExponentialInterpolation(diffrax.AbstractLocalInterpolation):
    """The step's own formula at times inside it."""

    dynamics: DenseHierarchy
    t0: Scalar
    t1: Scalar
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

    For stiff equations and long times, at one product with K⁽ᵖ⁾ and one
    eigendecomposition of n·C rows for each step. With H = ∂g/∂f, and with δ, K̃ and H at
    the step's start t₀ written δ = f − f₀, K and H₀, the hierarchy reads

        dK̃⁽ʳ⁾/dt = −K⁽ʳ⁺¹⁾ · H₀δ + N_r(t),    N_r = dK̃⁽ʳ⁾/dt + K⁽ʳ⁺¹⁾ · H₀δ.

    The linear part is solved exactly. N_r, which is small where the kernels move slowly,
    is replaced by a polynomial through its values at the last steps (predictor) and at
    the step's end besides (corrector); their difference is the error estimate. So the
    cost follows the motion of the kernels, not the stiffness: at level 2 the squared
    error is solved exactly in any step. It is a variable-step form of the methods in
    Hochbruck & Ostermann, *Exponential integrators*, Acta Numerica 19, 2010, section
    2.5.

    At levels above 2 the entries of the highest kernel in the state, K̃⁽ᵖ⁻¹⁾, are those
    of the predictor; the correction enters with the product of the next step.

    **Arguments:**

    - `dynamics`: the hierarchy that is solved, the same as in the `terms`.
    - `points`: the number of steps that the predictor goes through.
    """

    dynamics: DenseHierarchy
    points: int = eqx.field(static=True, default=5)
    term_structure: ClassVar[Any] = diffrax.ODETerm
    evaluations_per_step: ClassVar[int] = 1

    @property
    def interpolation_cls(self) -> Callable[..., ExponentialInterpolation]:  # pyright: ignore
        return partial(ExponentialInterpolation, dynamics=self.dynamics)

    def order(self, terms: Any) -> int:
        return self.points + 1

    def init(self, terms: Any, t0: Any, t1: Any, y0: Levels, args: Any) -> History:
        levels = flatten(self.dynamics, y0)
        slope = slope_at(self.dynamics, levels[0])

        def repeated(first: Array) -> Array:
            return jnp.zeros((self.points, *first.shape), first.dtype).at[0].set(first)

        return History(
            ts=repeated(jnp.asarray(t0, slope.dtype)),
            outputs=repeated(levels[0]),
            slopes=repeated(slope),
            rates=tuple(repeated(-times(k, slope)) for k in levels[1:]),
            count=jnp.asarray(1),
            pending=jnp.zeros_like(slope),
        )

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
        linear = LinearPart(dynamics, y0, levels[1])
        old = _remainder(levels, linear, solver_state, t0, h)
        lower, s = _advance(levels, linear, old, h, jnp.ones_like(h))
        predicted = (*lower, levels[-2] - times(levels[-1], s + pending))
        history = _push(dynamics, solver_state, predicted, t1)
        new = _remainder(levels, linear, history, t0, h)
        lower, s_new = _advance(levels, linear, new, h, jnp.ones_like(h))
        top, top_error, lacking = _top(levels, predicted[-1], s + pending, s_new - s)
        error = (*map(jnp.subtract, lower, predicted[:-1]), top_error)
        info = {"y0": y0, "linear": linear, "remainder": new, "pending": pending}
        return (
            unflatten(y0, (*lower, top)),
            unflatten(y0, error),
            info,
            _forget(history, lacking),
            diffrax.RESULTS.successful,
        )

    def func(self, terms: Any, t0: Any, y0: Levels, args: Any) -> Levels:
        return terms.vf(t0, y0, args)


def _top(
    levels: Flat,
    predicted: Array,
    s: Float[Array, " slots"],
    correction: Float[Array, " slots"],
) -> tuple[Array, Array, Float[Array, " slots"]]:
    """K̃⁽ᵖ⁻¹⁾ at the end of a step, its error estimate, and what the first one lacks.

    `predicted` is that of the predictor, whose ∫ g is `s` with a `correction`.
    """
    if len(levels) == 2:  # level 2: K⁽ᵖ⁾ is the NTK, and one more product is cheap
        change = -times(levels[-1], correction)
        return predicted + change, change, jnp.zeros_like(correction)
    # One product with K⁽ᵖ⁾ for each step: the estimate is in proportion to ∫ g.
    size = _norm(s)
    share = _norm(correction) / jnp.where(size > 0, size, 1)
    return predicted, share * (predicted - levels[-2]), correction


def _advance(
    levels: Flat, linear: LinearPart, remainder: Remainder, h: Scalar, theta: Scalar
) -> tuple[Flat, Float[Array, " slots"]]:
    """K̃⁽ʳ⁾ for r = 1 … p−2 at a time θh after the start, and ∫ g."""
    size = linear.rates.size
    if remainder.rates:
        forcing = remainder.rates[0][:, :size]
    else:  # level 2
        forcing = -remainder.slope @ levels[1][:size].T
    w = linear.integral(forcing, h, theta)
    lower = tuple(
        k + h * _integral(n, theta) - times(above, w)
        for k, above, n in zip(levels[:-2], levels[1:-1], remainder.rates, strict=True)
    )
    return lower, w + h * _integral(remainder.slope, theta)


def _integral(coefficients: Float[Array, "k ..."], theta: Scalar) -> Array:
    """∫ Σ_i c_i θ^i dθ from 0 to θ."""
    total = jnp.zeros_like(coefficients[0])
    for i in reversed(range(len(coefficients))):  # Horner's rule
        total = total * theta + coefficients[i] / (i + 1)
    return total * theta


def _remainder(
    levels: Flat, linear: LinearPart, history: History, t0: Scalar, h: Scalar
) -> Remainder:
    """The polynomials through the values at `history`, for a step from t₀."""
    size = linear.rates.size
    moved = linear.times_hessian(history.outputs[:, :size] - levels[0][:size])
    k = len(history.ts)
    known = jnp.arange(k) < history.count
    theta = jnp.where(known, (history.ts - t0) / jnp.where(h == 0, 1, h), 0)
    # Unknown values come last: for each, one coefficient of the highest powers is zero.
    powers = jnp.where(
        known[:, None], theta[:, None] ** jnp.arange(k), jnp.eye(k, dtype=theta.dtype)
    )

    def fit(values: Float[Array, "k ..."]) -> Float[Array, "k ..."]:
        flat = jnp.where(known[:, None], values.reshape(k, -1), 0)
        return jnp.linalg.solve(powers, flat).reshape(values.shape)

    rates = tuple(
        fit(rate + (moved @ above.reshape(-1, size).T).reshape(rate.shape))
        for rate, above in zip(history.rates, levels[1:-1], strict=True)
    )
    return Remainder(rates, fit(history.slopes - moved))


def _push(
    dynamics: DenseHierarchy, history: History, levels: Flat, t: Scalar
) -> History:
    """`history` with the evaluation at one more state."""
    slope = slope_at(dynamics, levels[0])
    rates = tuple(-times(k, slope) for k in levels[1:])

    def add(first: Array, later: Array) -> Array:
        return jnp.concatenate([first[None].astype(later.dtype), later])

    return History(
        ts=add(jnp.asarray(t), history.ts),
        outputs=add(levels[0], history.outputs),
        slopes=add(slope, history.slopes),
        rates=tuple(map(add, rates, history.rates)),
        count=history.count + 1,
        pending=history.pending,
    )


def _forget(history: History, pending: Float[Array, " slots"]) -> History:
    """`history` without its oldest evaluation."""
    k = len(history.ts) - 1
    kept = jax.tree.map(lambda leaf: leaf[:k] if leaf.ndim else leaf, history)
    known = jnp.minimum(history.count, k)
    return eqx.tree_at(lambda h: (h.count, h.pending), kept, (known, pending))


def _root(blocks: Float[Array, "n C C"]) -> Float[Array, "n C C"]:
    """The square root of each block without its negative eigenvalues."""
    if blocks.shape[1] == 1:
        positive = blocks > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, blocks, 1)), 0)
    # Any linear part gives a valid method: no derivative needs to pass through this.
    rates, modes = jnp.linalg.eigh(jax.lax.stop_gradient(blocks))
    return (modes * jnp.sqrt(jnp.maximum(rates, 0))[:, None, :]) @ modes.mT


def _norm(vector: Float[Array, " slots"]) -> Scalar:
    """The Euclidean norm, with a derivative of zero at zero."""
    square = jnp.sum(vector**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
