"""Networks of infinite width trained with noise or a ridge."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._analytic.closed_form import require_squared_error
from .._internal.eigenvalues import require_covariance
from .._internal.precision import full_precision
from .._internal.validation import require_positive
from .._kernels.infinite_width import EXAMPLE, InfiniteKernels, matching_kernels
from .._problem.problem import Problem


class Posterior(eqx.Module):
    """Mean and covariance on the test points: see [`nth.infinite.posterior`][]."""

    mean: Float[Array, "q *out"]
    """The mean of the outputs."""

    covariance: Float[Array, "q q"]
    """The covariance of one output between any two test points."""


@full_precision
def posterior(kernels: InfiniteKernels, problem: Problem, *, noise: float) -> Posterior:
    """Outputs on test points from noisy targets, or with a ridge, for wide networks.

    Training to t = ∞ with targets y + √noise · ξ, ξ ~ N(0, 1), and the regularization
    noise/(2n) |θ − θ₀|² in the loss leads to the outputs

        f = f₀ + A (y + √noise ξ − f₀),    A = Θ_* (Θ + noise)⁻¹,

    on test points, Θ_* the NTK between test and training points, so that over
    initializations and targets

        mean A y,    covariance (P_* − A P) 𝒦 (P_* − A P)ᵀ + noise A Aᵀ,

    where P_* and P select the test and the training points. With
    `InfiniteKernels(nngp, ntk=nngp)` it is the posterior of Bayesian inference with
    that variance of the noise, 𝒦_** − 𝒦_* (𝒦 + noise)⁻¹ 𝒦_*ᵀ (Lee et al. 2018, eqs. 8
    and 9).

    **Arguments:**

    - `kernels`: `nth.infinite.kernels(problem.x, ...)`.
    - `problem`: targets of shape `(n,)` or `(n, C)`, test points, and
        [`nth.SquaredError`][].
    - `noise`: the variance of the targets, above 0. Without noise use
        [`nth.infinite.ensemble`][] at t = ∞.

    **Returns:** [`nth.infinite.Posterior`][].

    **Raises:** `ValueError` for another loss, a `noise` that is not above 0, or kernels
    that do not match `problem` or are no covariance.
    """
    require_squared_error(problem, "infinite.posterior")
    variance = require_positive("noise", noise)
    checked = matching_covariances(kernels, problem)
    ridge = jnp.asarray(variance, checked.ntk.dtype)
    return Posterior(*_posterior(checked.nngp, checked.ntk, problem, ridge))


@eqx.filter_jit
def _posterior(
    nngp: Float[Array, "m m"],
    ntk: Float[Array, "m m"],
    problem: Problem,
    noise: Float[Array, ""],
) -> tuple[Float[Array, "q *out"], Float[Array, "q q"]]:
    n, y = problem.n_train, problem.y_train
    ridge = noise * jnp.eye(n, dtype=ntk.dtype)
    factor = jax.scipy.linalg.cho_factor(ntk[:n, :n] + ridge)
    weights = jax.scipy.linalg.cho_solve(factor, ntk[:n, n:]).T
    cross = weights @ nngp[:n, n:]
    own = weights @ (nngp[:n, :n] + ridge) @ weights.T
    return jnp.tensordot(weights, y, 1), nngp[n:, n:] - cross - cross.T + own


def matching_covariances(kernels: Any, problem: Problem) -> InfiniteKernels:
    """`matching_kernels`, for kernels that must have no negative eigenvalues."""
    kernels = matching_kernels(kernels, problem)
    for name, part in (("nngp", kernels.nngp), ("ntk", kernels.ntk)):
        require_covariance(f"kernels.{name}", part, f"Form them by {EXAMPLE}.")
    return kernels
