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

    mean: Float[Array, "T p *out"]
    """The mean of the outputs at all points, training points first, or at the test
    points."""

    covariance: Float[Array, "T p p"] | None
    """The covariance of one output between any two of these points; `None` if only the
    variances were requested."""

    variance: Float[Array, "T p"]
    """The variance of one output at each of these points."""

    @property
    def deviation(self) -> Float[Array, "T p"]:
        """The standard deviation at each point."""
        return safe_root(self.variance)


@full_precision
def ensemble(
    kernels: InfiniteKernels | Corrections,
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    *,
    points: str = "all",
    covariance: bool = True,
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
    - `points`: `"all"`, or `"test"` for the law at the test points alone, in less time.
    - `covariance`: whether to compute the covariance of these points; without it there
        are the variances, in less time and memory. At finite width this and `points`
        select from the whole law, and save no time.
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
    `problem` or contain NaN, `points="test"` without test points, or a covariance that
    would not fit in memory; with corrections also for several outputs, which are not
    independent at this order, and for t = ∞ with a singular NTK.
    """
    cure = "Give nth.Problem(x_train, y_train, x_test), which has this loss."
    require_squared_error(problem, "infinite.ensemble", cure)
    points = require_name("points", points, ("all", "test"))
    covariance = require_bool("covariance", covariance)
    resummed = require_bool("resummed", resummed)
    n, q = problem.n_train, problem.n_test
    if points == "test" and q == 0:
        raise ValueError(
            'points is "test", and problem has no test points: give '
            'nth.Problem(x_train, y_train, x_test), or points="all".'
        )
    if isinstance(kernels, Corrections):
        law = finite_width_ensemble(kernels, problem, ts, resummed=resummed)
        times, mean, full = law
        if points == "test":
            mean, full = mean[:, n:], full[:, n:, n:]
        variance = jnp.diagonal(full, axis1=1, axis2=2)
        return Ensemble(times, mean, full if covariance else None, variance)
    if resummed:
        raise ValueError(
            "resummed is True, and kernels of infinite width do not fluctuate: give "
            "nth.infinite.corrections(problem.x, width=..., ...), or leave it out."
        )
    kernels = matching_covariances(kernels, problem)
    m, dtype = len(kernels.ntk), kernels.ntk.dtype
    times = require_times(ts, dtype, with_infinity=True)
    rows = m if points == "all" else q
    numbers = len(times) * rows * (1 + rows * covariance)
    numbers += m * (_SPARE * m + problem.y_train.size)
    require_memory(
        "ts",
        f"the law of {rows} points at {len(times)} times",
        dtype.itemsize * numbers,
        'Give fewer times, fewer points in problem.x_test, points="test", or '
        "covariance=False.",
    )
    mean, variance, full = _law(kernels, problem, times, points, covariance)
    return Ensemble(times, mean, full, variance)


@eqx.filter_jit
def _law(
    kernels: InfiniteKernels,
    problem: Problem,
    ts: Float[Array, " T"],
    points: str,
    covariance: bool,
) -> tuple[Float[Array, "T p *out"], Float[Array, "T p"], Float[Array, "T p p"] | None]:
    n, y = problem.n_train, problem.y_train
    nngp, ntk = kernels.nngp, kernels.ntk
    train = ntk[:n, :n]
    eigen = eigendecomposition(train)
    identity = jnp.eye(n, dtype=ntk.dtype)
    first = 0 if points == "all" else n

    def at(t: Array) -> tuple[Array, Array, Array | None]:
        times = t[None] / n
        moved = relax_with(train, eigen, times, ntk[n:, :n].T)[1][0].T
        mean = jnp.tensordot(moved, y, 1)
        # 1 − R(t)P, whose columns beyond the first n are those of the identity.
        kept = -moved
        if points == "all":
            decay = relax_with(train, eigen, times, identity)[0][0]
            kept = jnp.concatenate([decay, kept])
            mean = jnp.concatenate([y - jnp.tensordot(decay, y, 1), mean])
        half = (kept @ nngp[:n]).at[n - first :].add(nngp[n:])
        variance = jnp.sum(half[:, :n] * kept, axis=1)
        own = jnp.diagonal(half[n - first :, n:])
        variance = variance.at[n - first :].add(own)
        if not covariance:
            return mean, variance, None
        full = half[:, :n] @ kept.T
        return mean, variance, full.at[:, n - first :].add(half[:, n:])

    return jax.lax.map(at, ts)
