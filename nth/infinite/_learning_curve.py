"""The test error of kernel regression from the spectrum of the kernel."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._internal.eigenvalues import require_covariance
from .._internal.precision import full_precision
from .._internal.validation import as_array, require_finite, require_scale
from .._network.finiteness import checked_finite
from .._network.memory import require_memory
from ._bisection import bisect, geometric

# Bisections in the logarithm of κ, over this factor in each direction.
_BISECTIONS, _RANGE = 100, 1e20


class LearningCurve(eqx.Module):
    """Expected errors of kernel regression: see [`nth.infinite.learning_curve`][]."""

    sizes: Float[Array, " S"]
    """The numbers of training points."""

    test_error: Float[Array, " S"]
    """E (f − y)² at a new point, with the noise of its target."""

    train_error: Float[Array, " S"]
    """The mean of (f − y)² over the training points."""

    effective_ridge: Float[Array, " S"]
    """κ: modes with eigenvalues above κ are learned."""

    learned: Float[Array, "S N"]
    """The learned share λ/(λ + κ) of each mode, in decreasing order of eigenvalue."""


@full_precision
def learning_curve(
    kernel: ArrayLike,
    targets: ArrayLike,
    sizes: ArrayLike | Sequence[int | float],
    *,
    ridge: float = 0.0,
    noise: float = 0.0,
) -> LearningCurve:
    """The expected error of kernel regression on n random points, for each n.

    `kernel` and `targets` on N points stand for the distribution of inputs: with the
    eigenvalues λ_k of `kernel`/N and the coefficients v_k of the targets in its modes,

        n = Σ_k λ_k/(λ_k + κ) + ridge/κ,    L_k = λ_k/(λ_k + κ),
        test error = n/(n − Σ_k L_k²) · [Σ_k (1 − L_k)² v_k² + noise]

    for the predictor K_* (K + ridge)⁻¹ y (Bordelon, Canatar & Pehlevan 2020; Simon et
    al. 2023). The training error is (ridge/(n κ))² times the test error. The theory
    treats the modes at random points as Gaussian and n as large.

    With the NTK of [`nth.infinite.kernels`][] it is the mean predictor of wide networks
    at t = ∞; with the NNGP kernel and `ridge` the variance of the noise, that of
    Bayesian inference.

    **Arguments:**

    - `kernel`: a symmetric matrix on N points, many more than the largest n.
    - `targets`: targets of the N points, shape `(N,)`, without noise.
    - `sizes`: numbers of training points n, above 0. Without a ridge they must be below
        the number of nonzero eigenvalues.
    - `ridge`: added to the diagonal of the kernel matrix.
    - `noise`: the variance of noise in the targets.

    **Returns:** [`nth.infinite.LearningCurve`][].

    **Raises:** `ValueError` for a kernel that is no covariance, targets of another
    shape, or sizes that are not possible.
    """
    matrix = as_array("kernel", kernel)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"kernel must have shape (N, N); got {matrix.shape}.")
    (matrix,) = checked_finite("kernel", [matrix], "Form it by nth.infinite.kernels.")
    require_covariance("kernel", matrix, "Form it by nth.infinite.kernels.")
    values = require_finite("targets", as_array("targets", targets))
    if values.shape != matrix.shape[:1] or values.dtype != matrix.dtype:
        raise ValueError(
            f"targets must have shape ({len(matrix)},) and dtype {matrix.dtype}; got "
            f"{values.shape} and {values.dtype}."
        )
    numbers = require_finite("sizes", as_array("sizes", sizes)).astype(matrix.dtype)
    scales = [
        jnp.asarray(require_scale(name, value), matrix.dtype)
        for name, value in (("ridge", ridge), ("noise", noise))
    ]
    require_memory(
        "kernel",
        f"the eigenvectors of {len(matrix)} points",
        4 * matrix.nbytes,
        "Use fewer points or float32.",
    )
    values, squares = _spectrum(matrix, values)
    rank = jnp.sum(values > 0)
    most = jnp.where(scales[0] > 0, jnp.inf, rank.astype(matrix.dtype))
    if numbers.ndim != 1 or not bool(jnp.all((numbers > 0) & (numbers < most))):
        raise ValueError(
            f"sizes must be above 0 and, without a ridge, below {rank}, the number of "
            f"nonzero eigenvalues; got {sizes!r}. Give fewer, or a ridge above 0."
        )
    return LearningCurve(numbers, *_curve(values, squares, numbers, *scales))


@eqx.filter_jit
def _spectrum(
    kernel: Float[Array, "N N"], targets: Float[Array, " N"]
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """λ_k, 0 where it is zero up to rounding error, and v_k², in decreasing order."""
    count = len(kernel)
    values, vectors = jnp.linalg.eigh(kernel / count)
    above = values > count * jnp.finfo(values.dtype).eps * values[-1]
    squares = (vectors.T @ targets) ** 2 / count
    return jnp.where(above, values, 0)[::-1], squares[::-1]


@eqx.filter_jit
def _curve(
    values: Float[Array, " N"],
    squares: Float[Array, " N"],
    sizes: Float[Array, " S"],
    ridge: Scalar,
    noise: Scalar,
) -> tuple[Array, ...]:
    def at(n: Scalar) -> tuple[Array, ...]:
        kappa = _effective_ridge(values, n, ridge)
        learned = values / (values + kappa)
        missed = jnp.sum((1 - learned) ** 2 * squares) + noise
        test = n / (n - jnp.sum(learned**2)) * missed
        return test, (ridge / (n * kappa)) ** 2 * test, kappa, learned

    return jax.lax.map(at, sizes)


def _effective_ridge(values: Array, n: Scalar, ridge: Scalar) -> Scalar:
    """κ, by bisection: Σ λ/(λ + κ) + ridge/κ decreases in κ.

    At κ = (Σ λ + ridge)/n it is at most n.
    """
    high = (jnp.sum(values) + ridge) / n
    smallest = jnp.finfo(values.dtype).tiny

    def above(kappa: Scalar) -> Array:
        return jnp.sum(values / (values + kappa)) + ridge / kappa > n

    low = jnp.maximum(high / _RANGE, smallest)
    return bisect(above, low, high, _BISECTIONS, geometric)
