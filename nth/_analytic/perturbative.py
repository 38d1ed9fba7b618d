"""The O(1/width) correction to the constant kernel in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar
from .._dynamics.dense import DenseHierarchy
from .._internal.eigenvalues import require_nonnegative
from .._internal.precision import full_precision
from .._internal.validation import require, require_times
from .._kernels.kernels import Kernels
from .._network.finiteness import checked_finite
from .._network.memory import require_memory, tree_bytes
from .._problem.problem import Problem
from .._solution.prediction import AbstractPrediction, summary
from .closed_form import (
    FORM_THEM,
    NOT_FINITE,
    Times,
    as_matrices,
    as_trajectory,
    require_squared_error,
    require_symmetric_ntk,
)
from .decay_integrals import (
    Eigen,
    decay_with_zero,
    eigendecomposition,
    end_of_time,
    nested_decay,
)

# The number of blocks of first slots: the memory in addition to K⁽⁴⁾ is a few times
# that of K⁽⁴⁾ divided by this number, and each block reads all of K⁽⁴⁾ once.
_BLOCKS = 8
# First slots are evaluated together up to this number of entries of K⁽⁴⁾: enough to
# hide the overhead of a loop, few enough for a processor's cache.
_ENTRIES_AT_ONCE = 2**17
# Nested integrals hold at most this many arrays, each as large as the entries of K⁽⁴⁾
# for one first slot.
_SPARE = 40


class Perturbation(AbstractPrediction):
    """Outputs and NTK up to order 1/width: see [`nth.perturbative`][]."""

    ts: Float[Array, " T"]
    """The requested times; the last may be ∞."""

    train: Float[Array, "T n *out"]
    """Outputs on the training points."""

    test: Float[Array, "T q *out"]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: Float[Array, " T"]
    """The training loss L of those outputs."""

    ntk: Float[Array, "T m ..."]
    """The NTK at each time, Θ₀ + Θ¹(t), of shape `(T, m, *out, n, *out)`."""

    def __repr__(self) -> str:
        return summary(self)


@full_precision
def perturbative(kernels: Kernels, problem: Problem, ts: Times) -> Perturbation:
    """Gradient flow of the squared error up to order 1/width, in closed form.

    With the constant kernel the residual is r(t) = e^{−Θ₀t/n}(f₀ − y). It changes the
    NTK, which changes the outputs, each to first order (Dyer & Gur-Ari 2020, section
    3.2):

        Θ¹(t) = −∫₀ᵗ [K⁽³⁾ − ∫₀ˢ K⁽⁴⁾ · r(u) du/n] · r(s) ds/n,
        f(t) = y + r(t) − ∫₀ᵗ e^{−Θ₀(t−s)/n} Θ¹(s) r(s) ds/n,

    with all kernels at initialization, and the last slot of K⁽⁴⁾ at the earliest time.
    In the eigenbasis of Θ₀ each integral is a nested integral of e^{−λs}, which has a
    closed form also where eigenvalues coincide or are zero.

    Level p = 4 of [`nth.solve`][] contains the same terms, and also uses the corrected
    outputs in the residual, so the two differ by terms of higher order in 1/width.

    **Arguments:**

    - `kernels`: computed by [`nth.kernels`][] on the points of `problem`, of order 4 or
        more.
    - `problem`: targets, with the loss [`nth.SquaredError`][].
    - `ts`: times, shape `(T,)`, increasing and nonnegative; the last may be `jnp.inf`
        if the NTK on the training points is nonsingular.

    **Returns:** [`nth.Perturbation`][]. The work is O(m·n³) for each time. The memory
    is half that of K⁽⁴⁾ in addition to K⁽⁴⁾ itself, and a few times that of the NTK at
    all times.

    Derivatives with respect to the kernels require distinct eigenvalues, as those of
    `jnp.linalg.eigh` do; derivatives with respect to the targets do not.

    **Raises:** `ValueError` for another loss, invalid times, kernels that have an order
    below 4, do not fit `problem` or contain NaN, a result that would not fit in memory,
    or t = ∞ with a singular NTK, for which the correction grows without bound.
    """
    level = DenseHierarchy(kernels, problem, order=2)
    require_squared_error(problem, "perturbative")
    if kernels.order < 4:
        raise ValueError(
            f"kernels go up to r = {kernels.order}, and the correction takes K(3) and "
            "K(4): form them with nth.kernels(network, problem, order=4)."
        )
    times = require_times(ts, kernels[1].dtype, with_infinity=True)
    _require_memory(kernels, len(times))
    tensors = checked_finite("kernels", kernels.tensors[:4], NOT_FINITE)
    require_symmetric_ntk(tensors[1], level.problem)
    outputs, ntk, eigen = _solve(tensors, level.problem, times)
    require_nonnegative("kernels", eigen.values, FORM_THEM)
    outputs = require(
        outputs,
        ~(jnp.any(eigen.null) & jnp.isinf(times)),
        "ts has inf, and the NTK on the training points is singular: along its null "
        "vectors the correction grows without bound. Give finite times.",
    )
    path = as_trajectory(outputs, level.problem, times)
    return Perturbation(path.ts, path.train, path.test, path.loss, ntk)


def _require_memory(kernels: Kernels, times: int) -> None:
    """Raise `ValueError` if the correction would not fit in memory."""
    ntk, fourth = tree_bytes(kernels[2]), tree_bytes(kernels[4])
    # Four arrays of the size of a block of K⁽⁴⁾, and _SPARE of one first slot.
    blocks = 4 * fourth // _BLOCKS + _SPARE * fourth // len(kernels[1])
    require_memory(
        "ts",
        f"the correction at {times} times",
        blocks + 4 * times * ntk,
        "Give fewer times, or kernels of fewer points or in float32.",
    )


@eqx.filter_jit
def _solve(
    tensors: tuple[Array, ...], problem: Problem, ts: Float[Array, " T"]
) -> tuple[Float[Array, "T m *out"], Float[Array, "T m ..."], Eigen]:
    """Outputs and NTK at each time, and the spectrum of the NTK at t = 0."""
    f, kernel, third, fourth = tensors
    start, rows, square, residual = as_matrices(f, kernel, problem)
    size = len(residual)
    higher = (third.reshape(-1, size, size), fourth.reshape(-1, size, size, size))
    eigen = eigendecomposition(square)
    rates, vectors, null, _ = eigen
    delta = vectors.T @ residual
    times = jnp.where(jnp.isinf(ts), end_of_time(rates, null), ts / problem.n_train)
    test_rows = rows[size:] @ vectors
    modes = _Eigenbasis(rates, vectors, delta, times, with_tests=len(test_rows) > 0)
    fed, gathered, motions = _of_slots(modes, higher)

    def at(step: tuple[Array, ...]) -> tuple[Array, Array]:
        t, fed, gathered, motion = step
        decayed = jnp.exp(-rates * t) * delta
        spent = nested_decay(jnp.zeros_like(rates), rates, t=t) * delta
        train = start[:size] - residual + vectors @ (decayed + fed[:size])
        test = start[size:] - test_rows @ (spent + gathered[:size]) + fed[size:]
        outputs = jnp.concatenate([train, test]).reshape(f.shape)
        motion = jnp.concatenate([vectors @ motion[:size], motion[size:]]) @ vectors.T
        return outputs, kernel + motion.reshape(kernel.shape)

    outputs, ntk = jax.lax.map(at, (times, fed, gathered, motions))
    return outputs, ntk, eigen


class _Eigenbasis(eqx.Module):
    """The eigenbasis of Θ₀ on the training points, and the times."""

    rates: Float[Array, " N"]
    """The eigenvalues λ_k, times n."""

    vectors: Float[Array, "N N"]
    """The eigenvectors, as columns."""

    delta: Float[Array, " N"]
    """The residual at t = 0 along each eigenvector."""

    times: Float[Array, " T"]
    """Times divided by n; finite."""

    with_tests: bool = eqx.field(static=True)
    """Whether there are test points."""


# K⁽³⁾ and K⁽⁴⁾, or rows of them: one row for each first slot, one axis for each slot.
_Higher = tuple[Float[Array, "r N N"], Float[Array, "r N N N"]]


def _of_slots(
    modes: _Eigenbasis, higher: _Higher
) -> tuple[Float[Array, "T M"], Float[Array, "T M"], Float[Array, "T M N"]]:
    """`_of_row` for each first slot, in blocks: the eigenvectors, then the test points.

    The decay rate of a test point is zero: its output has no term in df/dt.
    """
    extra = len(higher[0]) - len(modes.rates)
    rates = jnp.pad(modes.rates, (0, extra))
    identity = jnp.eye(extra, dtype=rates.dtype)
    combine = jax.scipy.linalg.block_diag(modes.vectors.T, identity)
    size = -(-len(rates) // _BLOCKS)
    blocks = -(-len(rates) // size)
    spare = blocks * size - len(rates)
    combine = jnp.pad(combine, ((0, spare), (0, 0))).reshape(blocks, size, -1)

    def of_block(block: tuple[Array, Array]) -> tuple[Array, ...]:
        rates, combine = block
        third, fourth = (jnp.tensordot(combine, kernel, 1) for kernel in higher)
        return _of_rows(modes, rates, (third, fourth))

    blocked = (jnp.pad(rates, (0, spare)).reshape(blocks, size), combine)
    fed, gathered, motion = (
        jnp.moveaxis(part.reshape(blocks * size, *part.shape[2:])[: len(rates)], 0, 1)
        for part in jax.lax.map(of_block, blocked)
    )
    return fed, gathered, motion


def _of_rows(
    modes: _Eigenbasis, rates: Float[Array, " r"], higher: _Higher
) -> tuple[Float[Array, "r T"], Float[Array, "r T"], Float[Array, "r T N"]]:
    """`_of_row` for each row, vectorized if the rows are small."""
    together = higher[1].size <= _ENTRIES_AT_ONCE
    row = jax.checkpoint(lambda row: _of_row(modes, *row))
    batch = len(rates) if together else None
    return jax.lax.map(row, (rates, *higher), batch_size=batch)


def _of_row(
    modes: _Eigenbasis,
    rate: Scalar,
    third: Float[Array, "N N"],
    fourth: Float[Array, "N N N"],
) -> tuple[Float[Array, " T"], Float[Array, " T"], Float[Array, "T N"]]:
    """One first slot: f¹, its integral ∫₀ᵗ f¹, and Θ¹, at each time.

    f¹ solves df¹/dt = −λ f¹ − Θ¹ r. Backwards in time, mode i of f¹ decays at the rate
    λ_i until Θ¹ couples it to mode j of r, which decays at λ_j until K⁽³⁾ couples Θ¹ to
    mode k of r, and so on: a chain of time intervals with the rates λ_i, λ_j,
    λ_j + λ_k, λ_j + λ_k + λ_l. With a rate 0 in front, the chain gives ∫₀ᵗ f¹.

    Θ¹(t) = −∫₀ᵗ [K⁽³⁾ − ∫₀ˢ K⁽⁴⁾ · r(u) du] · r(s) ds.
    """
    weighted = modes.vectors * modes.delta[None]
    third = modes.vectors.T @ third @ weighted
    fourth = jnp.einsum(
        "bcd,bj,ck,dl->jkl",
        fourth,
        modes.vectors,
        weighted,
        weighted,
        optimize="optimal",
    )
    j, k, l = (  # noqa: E741
        jnp.expand_dims(modes.rates, axes) for axes in ((1, 2), (0, 2), (0, 1))
    )
    chain = jnp.full_like(j, rate), j, j + k

    def fed(short: Array, long: Array) -> Scalar:
        return modes.delta @ (
            jnp.sum(third * short[..., 0], 1) - jnp.sum(fourth * long, (1, 2))
        )

    def at(t: Scalar) -> tuple[Array, Array, Array]:
        if modes.with_tests:
            shorts = decay_with_zero(*chain, t=t)
            longs = decay_with_zero(*chain, j + k + l, t=t)
            moved, gathered = map(fed, shorts, longs)
        else:
            short = nested_decay(*chain, t=t)
            moved = fed(short, nested_decay(*chain, j + k + l, t=t))
            gathered = jnp.zeros_like(moved)
        zero = jnp.zeros_like(modes.rates)
        short = nested_decay(zero, modes.rates, t=t)
        long = nested_decay(zero[:, None], k[0], (k + l)[0], t=t)
        return moved, gathered, jnp.tensordot(fourth, long, 2) - third @ short

    return jax.lax.map(at, modes.times)
