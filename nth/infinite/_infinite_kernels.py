"""Kernels of infinite width in functions of finite networks, and with noise."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._analytic.closed_form import require_squared_error
from .._internal.eigenvalues import require_covariance
from .._internal.precision import full_precision
from .._internal.validation import (
    as_array,
    require_finite,
    require_instance,
    require_positive,
)
from .._kernels.kernels import Kernels
from .._network.finiteness import checked_finite
from .._network.memory import require_memory
from .._problem.problem import Problem

EXAMPLE = "nth.infinite.kernels(problem.x, ...)"


class InfiniteKernels(eqx.Module):
    """The kernels of [`nth.infinite.kernels`][], each of shape `(n1, n2)`.

    With several outputs they are the kernels of one output: two outputs are independent
    at initialization, and their mutual NTK is zero. The NTK on slots `(n1, C, n2, C)`
    is `ntk` times the identity on the outputs.
    """

    nngp: Float[Array, "n1 n2"]
    """E f(x) f(x′) over initializations: the covariance of the Gaussian process f."""

    ntk: Float[Array, "n1 n2"]
    """K⁽²⁾, the same for every initialization and constant in time."""


def as_kernels(
    kernels: InfiniteKernels, problem: Problem, *, outputs: ArrayLike | None = None
) -> Kernels:
    """The NTK of infinite width as an [`nth.Kernels`][] of order 2.

    Every function of kernels takes it: [`nth.spectrum`][], [`nth.closed_form`][],
    [`nth.theory.bounds`][], and, with any loss, `nth.DenseHierarchy(kernels, problem)`
    for [`nth.integrate`][]. The NTK is constant at infinite width, so level 2 is exact.

    **Arguments:**

    - `kernels`: `nth.infinite.kernels(problem.x, ...)`.
    - `problem`: points and targets.
    - `outputs`: f at initialization on all points, of shape `(m,)`, or `(m, C)` for a
        network with C outputs; by default 0, which is its mean over initializations
        and, for scalar outputs, gives the mean of trained outputs with squared error.

    **Raises:** `ValueError` for kernels or outputs that do not match `problem`, or that
    would not fit in memory.
    """
    ntk = matching_kernels(kernels, problem).ntk
    m, n = len(ntk), problem.n_train
    start = jnp.zeros(m, ntk.dtype) if outputs is None else as_array("outputs", outputs)
    if start.ndim not in (1, 2) or len(start) != m or start.dtype != ntk.dtype:
        raise ValueError(
            f"outputs must have shape ({m},) or ({m}, C) and dtype {ntk.dtype}; got "
            f"{start.shape} and {start.dtype}."
        )
    start = require_finite("outputs", start)
    if start.ndim == 1:
        return Kernels((start, ntk[:, :n]))
    count = start.shape[1]
    require_memory(
        "outputs",
        f"the NTK on {m * count} x {n * count} slots",
        m * n * count**2 * ntk.dtype.itemsize,
        "Use fewer points or float32, or one output at a time.",
    )
    identity = jnp.eye(count, dtype=ntk.dtype)
    return Kernels((start, ntk[:, None, :n, None] * identity[None, :, None]))


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


def matching_kernels(kernels: Any, problem: Problem) -> InfiniteKernels:
    """`kernels` as finite arrays on all points of `problem`, and in its dtype."""
    require_instance("kernels", kernels, InfiniteKernels, EXAMPLE)
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    m, dtype = problem.n_train + problem.n_test, problem.y_train.dtype
    parts = [as_array("kernels", part) for part in (kernels.nngp, kernels.ntk)]
    for part in parts:
        if part.shape != (m, m):
            raise ValueError(
                f"kernels have shape {part.shape} and problem has m = {m} points: "
                f"form them by {EXAMPLE}."
            )
        if jnp.issubdtype(dtype, jnp.floating) and part.dtype != dtype:
            raise ValueError(
                f"kernels have dtype {part.dtype} and problem has {dtype}: cast one of "
                "them."
            )
    cure = f"form them by {EXAMPLE}."
    return InfiniteKernels(*checked_finite("kernels", parts, cure))


def matching_covariances(kernels: Any, problem: Problem) -> InfiniteKernels:
    """The same, for kernels that must have no negative eigenvalues."""
    kernels = matching_kernels(kernels, problem)
    for name, part in (("nngp", kernels.nngp), ("ntk", kernels.ntk)):
        require_covariance(f"kernels.{name}", part, f"Form them by {EXAMPLE}.")
    return kernels
