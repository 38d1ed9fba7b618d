"""Eigenvalues of kernels: a tolerance for zero, and leading ones from products."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from .._custom_types import Scalar
from .validation import is_traced


def rounding_of(eigenvalues: Float[Array, " n"]) -> Scalar:
    """The size below which an eigenvalue is zero up to rounding error, given all n."""
    eps = jnp.finfo(eigenvalues.dtype).eps
    return len(eigenvalues) * eps * jnp.max(eigenvalues)


def _tolerance(matrix: Array) -> float:
    # A kernel of float64 may have been computed in float32 and cast.
    return max(1e-5, 10 * float(jnp.finfo(matrix.dtype).eps) ** 0.5)


def require_symmetric(argument: str, matrix: Array, cure: str) -> None:
    """Raise `ValueError` for a `matrix` that is not symmetric up to rounding error.

    A tracer is not checked. `cure` is a sentence.
    """
    if not is_traced(matrix) and not is_symmetric(matrix):
        asymmetry = float(jnp.max(jnp.abs(matrix - matrix.T)))
        raise ValueError(
            f"{argument} are not symmetric: two entries that must be equal differ by "
            f"{asymmetry:.3g}. {cure}"
        )


def is_symmetric(matrix: Array) -> bool:
    """Whether a concrete `matrix` is symmetric up to rounding error; so is NaN."""
    scale = float(jnp.max(jnp.abs(matrix)))
    asymmetry = float(jnp.max(jnp.abs(matrix - matrix.T)))
    return not asymmetry > _tolerance(matrix) * scale


def require_covariance(argument: str, matrix: Array, cure: str) -> None:
    """Raise `ValueError` for a `matrix` that is not symmetric or has eigenvalues below
    0, by more than rounding error.

    A tracer is not checked. `cure` is a sentence.
    """
    require_symmetric(argument, matrix, cure)
    if is_traced(matrix):
        return
    # A Cholesky factor of the matrix, shifted by no more than the tolerance, shows that
    # no eigenvalue is below it, in a fraction of the time of the eigenvalues.
    shift = _tolerance(matrix) * float(jnp.max(jnp.diagonal(matrix)))
    shifted = (matrix + matrix.T) / 2 + shift * jnp.eye(len(matrix), dtype=matrix.dtype)
    if not bool(jnp.all(jnp.isfinite(jnp.linalg.cholesky(shifted)))):
        values = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)
        require_nonnegative(argument, values, cure)


def require_nonnegative(
    argument: str, eigenvalues: Float[Array, " n"], cure: str
) -> None:
    """Raise `ValueError` if one of the increasing `eigenvalues` is below 0 by more
    than rounding error. Tracers are not checked."""
    if is_traced(eigenvalues):
        return
    largest = jnp.max(jnp.abs(eigenvalues))
    if eigenvalues[0] < -_tolerance(eigenvalues) * largest:
        raise ValueError(
            f"{argument} have an eigenvalue of {float(eigenvalues[0]):.3g}, and those "
            f"of a kernel are at least 0. {cure}"
        )


def leading_modes(
    product: Callable[[Array], Array],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    count: int,
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count ..."]]:
    """The largest eigenvalues, in decreasing order, and eigenvectors of `shape`.

    By the Lanczos method, SciPy's `eigsh` (ARPACK), which needs only products v ↦ K v.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh  # slow to import

    size = int(np.prod(shape))

    def times(vector: np.ndarray) -> np.ndarray:
        return np.asarray(product(jnp.asarray(vector.reshape(shape), dtype))).ravel()

    operator = LinearOperator((size, size), times, dtype=dtype)  # pyright: ignore
    start = np.random.default_rng(0).normal(size=size).astype(dtype)
    values, vectors = eigsh(operator, count, which="LA", v0=start)
    return values[::-1], vectors.T[::-1].reshape(count, *shape)
