"""Eigenvalues of kernels: which are zero, and the leading ones from products alone."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from ._types import Scalar


def rounding_of(eigenvalues: Float[Array, " n"]) -> Scalar:
    """What an eigenvalue must pass to be known from zero, all n of them being given."""
    eps = jnp.finfo(eigenvalues.dtype).eps
    return len(eigenvalues) * eps * jnp.max(eigenvalues)


def leading_modes(
    product: Callable[[Array], Array],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    count: int,
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count ..."]]:
    """The largest eigenvalues, falling, and their vectors of `shape`, one a row.

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
