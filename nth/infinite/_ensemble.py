"""The distribution over initializations of wide networks that are trained."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._analytic.closed_form import require_squared_error
from .._analytic.decay_integrals import eigendecomposition, relax_with
from .._internal.precision import full_precision
from .._internal.validation import (
    require_bool,
    require_name,
    require_times,
)
from .._kernels.infinite_width import InfiniteKernels
from .._network.memory import require_memory
from .._problem.problem import Problem
from ._angles import safe_root
from ._finite_width import Corrections
from ._finite_width_law import finite_width_ensemble
from ._posterior import matching_covariances

# The number of matrices in memory in addition to the result of `ensemble`.
_SPARE = 8


class Ensemble(eqx.Module):
    """Mean and covariance over initializations: see [`nth.infinite.ensemble`][]."""

    ts: Float[Array, " T"]
    """The requested times; the last may be ∞."""

    mean: Float[Array, "T m *out"]
    """The mean of the outputs, training points first."""

    covariance: Float[Array, "T rows rows"] | None
    """The covariance of one output between any two points, or any two test points;
    `None` if only the variances were requested."""

    variance: Float[Array, "T m"]
    """The variance of one output at each point."""

    @property
    def deviation(self) -> Float[Array, "T m"]:
        """The standard deviation at each point."""
        return safe_root(self.variance)


@full_precision
def ensemble(
    kernels: InfiniteKernels | Corrections,
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    *,
    covariance: str = "all",
    resummed: bool = False,
) -> Ensemble:
    """The distribution of wide networks trained by gradient flow.

    At infinite width each network has f(t) = f₀ − R(t)(f₀ − y) with
    R(t) = Θ Θ⁻¹(1 − e^{−Θ t/n}) (rows on all points, everything else on training
    points), where f₀ is Gaussian with the NNGP kernel 𝒦 as its covariance. So f(t) is
    Gaussian, with

        mean R(t) y,      covariance (1 − R(t)P) 𝒦 (1 − R(t)P)ᵀ,

    where P selects the training points (Lee et al. 2019, eqs. 13 and 14). Components
    along eigenvectors of Θ of eigenvalue zero do not change.

    With `InfiniteKernels(nngp, ntk=nngp)` and t = ∞ it is the posterior of Bayesian
    inference, which is also the distribution if only the last layer is trained.

    **Arguments:**

    - `kernels`: `nth.infinite.kernels(problem.x, ...)`, on all points of `problem`, or
        kernels from elsewhere of shape `(m, m)`; or, for the law at finite width,
        `nth.infinite.corrections(problem.x, width=..., ...)`.
    - `problem`: targets of shape `(n,)` or `(n, C)`, and [`nth.SquaredError`][].
    - `ts`: times, shape `(T,)`, increasing and nonnegative; the last may be `jnp.inf`.
    - `covariance`: `"all"` for the covariance of all m points, `"test"` for that of the
        test points, or `"variances"` for the variance at each point alone, which takes
        less time and memory.
    - `resummed`: at finite width, whether e^{−K⁽²⁾t/n} is averaged over a distribution
        of K⁽²⁾ in place of its expansion to second order. Also exact to order 1/width,
        it is much closer to narrow networks at long times.

    **Returns:** [`nth.infinite.Ensemble`][].

    At finite width the distribution is not Gaussian; its mean and covariance are exact
    to order 1/width. They are means over initializations of the closed-form correction
    of [`nth.perturbative`][] (Dyer & Gur-Ari 2020), with the fluctuation of K⁽²⁾ to
    second order. Where the correction is as large as the limit the width is too small:
    a variance may then be negative, and its `deviation` 0.

    With `resummed` K⁽²⁾ = Θ^½ e^S Θ^½ with Gaussian symmetric S, which has the mean and
    the covariance of K⁽²⁾ to order 1/width and is positive. Its average is over 1,024
    or more S, by quasi-Monte Carlo, with an error of about a hundredth of what it
    adds; the terms of K⁽³⁾ and K⁽⁴⁾ are as before.

    **Raises:** `ValueError` for another loss, invalid times, kernels that do not match
    `problem` or contain NaN, or a covariance that would not fit in memory; with
    corrections also for several outputs, which are not independent at this order, and
    for t = ∞ with a singular NTK.
    """
    cure = "Give nth.Problem(x_train, y_train, x_test), which has this loss."
    require_squared_error(problem, "infinite.ensemble", cure)
    covariance = require_name("covariance", covariance, ("all", "test", "variances"))
    resummed = require_bool("resummed", resummed)
    if isinstance(kernels, Corrections):
        law = finite_width_ensemble(kernels, problem, ts, resummed=resummed)
        times, mean, full = law
        variance = jnp.diagonal(full, axis1=1, axis2=2)
        n = problem.n_train
        part = {"all": full, "test": full[:, n:, n:], "variances": None}[covariance]
        return Ensemble(times, mean, part, variance)
    if resummed:
        raise ValueError(
            "resummed is True, and kernels of infinite width do not fluctuate: give "
            "nth.infinite.corrections(problem.x, width=..., ...), or leave it out."
        )
    kernels = matching_covariances(kernels, problem)
    m, dtype = len(kernels.ntk), kernels.ntk.dtype
    times = require_times(ts, dtype, with_infinity=True)
    rows = {"all": m, "test": problem.n_test, "variances": 0}[covariance]
    numbers = len(times) * (rows**2 + m) + m * (_SPARE * m + problem.y_train.size)
    require_memory(
        "ts",
        f"the covariance of {m} points at {len(times)} times",
        dtype.itemsize * numbers,
        "Give fewer times, fewer points in problem.x_test, or covariance='variances'.",
    )
    mean, variance, full = _law(kernels, problem, times, covariance)
    return Ensemble(times, mean, full, variance)


@eqx.filter_jit
def _law(
    kernels: InfiniteKernels,
    problem: Problem,
    ts: Float[Array, " T"],
    covariance: str,
) -> tuple[
    Float[Array, "T m *out"],
    Float[Array, "T m"],
    Float[Array, "T rows rows"] | None,
]:
    n, y = problem.n_train, problem.y_train
    nngp, ntk = kernels.nngp, kernels.ntk
    train = ntk[:n, :n]
    eigen = eigendecomposition(train)
    identity = jnp.eye(n, dtype=ntk.dtype)

    def at(t: Array) -> tuple[Array, Array, Array | None]:
        decay, integral = (
            part[0] for part in relax_with(train, eigen, t[None] / n, identity)
        )
        moved = ntk[n:, :n] @ integral
        # 1 − R(t)P, whose columns beyond the first n are those of the identity.
        kept = jnp.concatenate([decay, -moved])
        mean = jnp.concatenate(
            [y - jnp.tensordot(decay, y, 1), jnp.tensordot(moved, y, 1)]
        )
        half = (kept @ nngp[:n]).at[n:].add(nngp[n:])
        variance = jnp.sum(half[:, :n] * kept, axis=1)
        variance = variance.at[n:].add(jnp.diagonal(half[n:, n:]))
        if covariance == "variances":
            return mean, variance, None
        first = 0 if covariance == "all" else n
        full = half[first:, :n] @ kept[first:].T
        return mean, variance, full.at[:, n - first :].add(half[first:, n:])

    return jax.lax.map(at, ts)
