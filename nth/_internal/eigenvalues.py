"""Eigenvalues of kernels: a tolerance for zero, and leading ones from products."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from .._custom_types import Scalar


def rounding_of(eigenvalues: Float[Array, " n"]) -> Scalar:
    """The size below which an eigenvalue is zero up to rounding error, given all n."""
    eps = jnp.finfo(eigenvalues.dtype).eps
    return len(eigenvalues) * eps * jnp.max(eigenvalues)


def leading_modes(
    product: Callable[[Array], Array],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    count: int,
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count ..."]]:
    """The largest eigenvalues, in decreasing order, and their vectors of `shape`.

    By Lanczos' method, SciPy's `eigsh` (ARPACK): it takes products v ↦ K v alone.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh  # slow to import

    size = int(np.prod(shape))

    def times(vector: np.ndarray) -> np.ndarray:
        return np.asarray(product(jnp.asarray(vector.reshape(shape), dtype))).ravel()

    operator = LinearOperator((size, size), times, dtype=dtype)  # pyright: ignore
    start = np.random.default_rng(0).normal(size=size).astype(dtype)
    values, vectors = eigsh(operator, count, which="LA", v0=start)
    return values[::-1], vectors.T[::-1].reshape(count, *shape)
