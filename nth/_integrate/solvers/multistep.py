"""The parts of an exponential multistep method for the dense hierarchy."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._custom_types import Scalar
from ..._dynamics.dense import DenseHierarchy
from ..._problem.losses import SquaredError
from .dense_newton import Flat, output_hessian, slope_at, times, times_blocks
from .phi import double_integral

# A polynomial through values at times closer than this, in steps, amplifies their
# rounding errors.
_CLOSE = 0.05


class LinearPart(eqx.Module):
    """The linear operator of a step: δ ↦ −K̃⁽ʳ⁺¹⁾ · Hδf in row r, at some earlier state.

    H is ∂g/∂f without its negative eigenvalues, R its square root, and R K̃⁽²⁾ R on the
    training points has these `eigenvalues`, and the eigenvectors `modes`.
    """

    kernels: Flat
    """K̃⁽²⁾, …, K̃⁽ᵖ⁻¹⁾."""

    root: Float[Array, "n C C"]
    matrix: Float[Array, "slots slots"]
    eigenvalues: Float[Array, " slots"]
    modes: Float[Array, "slots slots"]

    def __init__(self, dynamics: DenseHierarchy, levels: Flat):
        outputs = levels[0].reshape(dynamics.levels[0].shape)
        blocks = output_hessian(dynamics, outputs)
        size = blocks.shape[0] * blocks.shape[1]
        self.kernels = levels[1:-1]
        self.root = _root(blocks)
        rows = times_blocks(levels[1][:size], self.root)
        matrix = times_blocks(rows.T, self.root)
        self.matrix = (matrix + matrix.T) / 2
        # `double_integral` has the derivative with respect to the matrix.
        fixed = jax.lax.stop_gradient(self.matrix)
        self.eigenvalues, self.modes = jnp.linalg.eigh(fixed)

    def times_hessian(self, rows: Float[Array, "k slots"]) -> Float[Array, "k slots"]:
        """H applied to each row."""
        return times_blocks(times_blocks(rows, self.root), self.root)

    def integral(
        self, forcing: Float[Array, "k slots"], h: Scalar, theta: Scalar
    ) -> Float[Array, " slots"]:
        """W = ∫ H δ dt to the time θh, for dδ/dt = −K̃⁽²⁾ H δ + Σ_i b_i (t/h)^i."""
        scaled, eigenvalues = h * self.matrix, h * self.eigenvalues
        rooted = times_blocks(forcing, self.root)
        x = double_integral(scaled, eigenvalues, self.modes, theta, rooted)
        return h**2 * times_blocks(x[None], self.root)[0]


class History(eqx.Module):
    """Evaluations at the last steps, newest first; between steps the last is free."""

    ts: Float[Array, " k"]
    outputs: Float[Array, "k all_slots"]
    slopes: Float[Array, "k slots"]
    """g."""

    derivatives: tuple[Float[Array, "k ..."], ...]
    """dK̃⁽ʳ⁾/dt for r = 1 … p−2."""

    count: Int[Array, ""]
    """How many are known."""

    pending: Float[Array, " slots"]
    """What K̃⁽ᵖ⁻¹⁾ lacks is −K⁽ᵖ⁾ · `pending`."""

    linear: LinearPart
    age: Int[Array, ""]
    """The number of steps made with `linear`."""


class Remainder(eqx.Module):
    """The nonlinear part of a step of size h: coefficients of ((t − t₀)/h)^i."""

    derivatives: tuple[Float[Array, "k ..."], ...]
    """dK̃⁽ʳ⁾/dt + K̃⁽ʳ⁺¹⁾(t₀) · H(f − f(t₀)) for r = 1 … p−2."""

    slope: Float[Array, "k slots"]
    """g − H(f − f(t₀))."""


def remainder(
    levels: Flat, linear: LinearPart, history: History, t0: Scalar, h: Scalar
) -> Remainder:
    """The polynomials through the values at `history`, for a step from t₀."""
    size = linear.eigenvalues.size
    moved = linear.times_hessian(history.outputs[:, :size] - levels[0][None, :size])
    k = len(history.ts)
    known = jnp.arange(k) < history.count
    theta = jnp.where(known, (history.ts - t0) / jnp.where(h == 0, 1, h), 0)
    # Unknown values come last: for each, one coefficient of the highest powers is zero.
    powers = jnp.where(
        known[:, None],
        theta[:, None] ** jnp.arange(k, dtype=theta.dtype)[None],
        jnp.eye(k, dtype=theta.dtype),
    )

    def fit(values: Float[Array, "k ..."]) -> Float[Array, "k ..."]:
        flat = jnp.where(known[:, None], values.reshape(k, -1), 0)
        return jnp.linalg.solve(powers, flat).reshape(values.shape)

    derivatives = tuple(
        fit(rate + (moved @ above.reshape(-1, size).T).reshape(rate.shape))
        for rate, above in zip(history.derivatives, linear.kernels, strict=True)
    )
    return Remainder(derivatives, fit(history.slopes - moved))


def start(dynamics: DenseHierarchy, levels: Flat, t: Scalar, points: int) -> History:
    """A history of one evaluation, with room for `points` and one more."""
    slope = slope_at(dynamics, levels[0])

    def room(first: Array) -> Array:
        return jnp.zeros((points + 1, *first.shape), first.dtype).at[0].set(first)

    return History(
        ts=room(jnp.asarray(t, slope.dtype)),
        outputs=room(levels[0]),
        slopes=room(slope),
        derivatives=tuple(room(-times(k, slope)) for k in levels[1:-1]),
        count=jnp.asarray(1),
        pending=jnp.zeros_like(slope),
        linear=LinearPart(dynamics, levels),
        age=jnp.asarray(0),
    )


def push(
    dynamics: DenseHierarchy, history: History, levels: Flat, t: Scalar
) -> History:
    """`history` with the evaluation at one more state."""
    slope = slope_at(dynamics, levels[0])
    derivatives = tuple(-times(k, slope) for k in levels[1:])

    def add(first: Array, later: Array) -> Array:
        return jnp.concatenate([first[None].astype(later.dtype), later[:-1]])

    return History(
        ts=add(jnp.asarray(t), history.ts),
        outputs=add(levels[0], history.outputs),
        slopes=add(slope, history.slopes),
        derivatives=tuple(map(add, derivatives, history.derivatives)),
        count=history.count + 1,
        pending=history.pending,
        linear=history.linear,
        age=history.age + 1,
    )


def forget(history: History, pending: Float[Array, " slots"]) -> History:
    """`history` with room for one more evaluation."""
    count = jnp.minimum(history.count, len(history.ts) - 1)
    return eqx.tree_at(lambda h: (h.count, h.pending), history, (count, pending))


def without_close_times(history: History, h: Scalar) -> History:
    """`history` up to the first two times that are close together compared to h."""
    apart = history.ts[:-1] - history.ts[1:] >= _CLOSE * h
    usable = 1 + jnp.sum(jnp.cumprod(apart.astype(history.count.dtype)))
    count = jnp.minimum(history.count, usable)
    return eqx.tree_at(lambda h: h.count, history, count)


def with_linear_part(
    dynamics: DenseHierarchy, levels: Flat, history: History, reuse: int
) -> History:
    """`history` with a new linear part, if its own has served for `reuse` steps."""
    if len(levels) == 2 and isinstance(dynamics.problem.loss, SquaredError):
        return history  # a constant kernel and a constant H
    old = history.linear

    def new() -> LinearPart:
        return LinearPart(dynamics, levels)

    due = history.age >= reuse
    linear = jax.lax.cond(due, new, lambda: old)
    age = jnp.where(due, 0, history.age)
    return eqx.tree_at(lambda h: (h.linear, h.age), history, (linear, age))


def _root(blocks: Float[Array, "n C C"]) -> Float[Array, "n C C"]:
    """The square root of each block without its negative eigenvalues."""
    if blocks.shape[1] == 1:
        positive = blocks > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, blocks, 1)), 0)
    # Any linear part gives a valid method: no derivative needs to pass through this.
    eigenvalues, modes = jnp.linalg.eigh(jax.lax.stop_gradient(blocks))
    return (modes * jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None, :]) @ modes.mT
