"""Time integrals of polynomials against decaying exponentials: φ functions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._custom_types import Scalar

# Below this size the Taylor series of φ_k converges fast; above it, the recursion
# φ_{k+1}(z) = (φ_k(z) − 1/k!)/z loses few digits.
_SMALL = 2.0
_TERMS = 26


def phi(z: Float[Array, "..."], last: int) -> list[Float[Array, "..."]]:
    """φ₀(z), …, φ_last(z), where φ_k(z) = Σ_j z^j/(j+k)!, so that φ₀(z) = e^z."""
    small = jnp.abs(z) < _SMALL
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    series = jnp.zeros_like(z)
    for j in reversed(range(_TERMS)):
        series = series * near + 1 / math.factorial(j + last)
    down = [series]
    for k in reversed(range(last)):
        down.append(down[-1] * near + 1 / math.factorial(k))
    up = [jnp.exp(far)]
    for k in range(last):
        up.append((up[-1] - 1 / math.factorial(k)) / far)
    pairs = zip(reversed(down), up, strict=True)
    return [jnp.where(small, one, other) for one, other in pairs]


@jax.custom_jvp
def double_integral(
    matrix: Float[Array, "n n"],
    eigenvalues: Float[Array, " n"],
    modes: Float[Array, "n n"],
    t: Scalar,
    forcing: Float[Array, "k n"],
) -> Float[Array, " n"]:
    """∫₀ᵗ x(s) ds for dx/ds = −A x + Σ_i s^i b_i, x(0) = 0, with b the `forcing`.

    A is the symmetric `matrix`, with `eigenvalues`, and eigenvectors `modes`. The value
    is Σ_i i! t^{i+2} φ_{i+2}(−tA) b_i.
    """
    del matrix
    weights = phi(-t * eigenvalues, len(forcing) + 1)[2:]
    inside = forcing @ modes
    total = jnp.zeros_like(eigenvalues)
    for i, weight in enumerate(weights):
        total = total + math.factorial(i) * t ** (i + 2) * weight * inside[i]
    return modes @ total


@double_integral.defjvp
def _double_integral_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """Exact also where eigenvalues coincide (Daleckii & Krein)."""
    matrix, eigenvalues, modes, t, forcing = primals
    d_matrix, _, _, d_t, d_forcing = tangents
    value = double_integral(matrix, eigenvalues, modes, t, forcing)
    turned = modes.T @ (d_matrix + d_matrix.T) @ modes / 2
    inside = forcing @ modes
    speeds = phi(-t * eigenvalues, len(forcing))[1:]
    slopes = _divided_differences(-t * eigenvalues, len(forcing) + 1)[2:]
    total = jnp.zeros_like(eigenvalues)
    for i, row in enumerate(inside):
        change = -(t ** (i + 3)) * ((slopes[i] * turned) @ row)
        speed = d_t * t ** (i + 1) * speeds[i] * row
        total = total + math.factorial(i) * (change + speed)
    d_value = modes @ total
    return value, d_value + double_integral(matrix, eigenvalues, modes, t, d_forcing)


def _divided_differences(
    z: Float[Array, " n"], last: int
) -> Float[Array, "orders n n"]:
    """(φ_k(z_i) − φ_k(z_j))/(z_i − z_j) for k = 0 … last; φ_k′(z_i) where z_i = z_j."""
    gap = z[:, None] - z[None, :]
    far = jnp.abs(gap) > 1
    values = jnp.stack(phi(z, last))
    quotient = (values[:, :, None] - values[:, None, :]) / jnp.where(far, gap, 1)[None]
    # Close together, the mean of φ_k′ = φ_k − k φ_{k+1} between them by Gauss's rule.
    nodes, weights = np.polynomial.legendre.leggauss(6)
    orders = jnp.arange(last + 1, dtype=z.dtype)[:, None, None]

    def add(total: Array, rule: Array) -> tuple[Array, None]:
        at = z[None, :] + (1 + rule[0]) / 2 * jnp.where(far, 0, gap)
        table = jnp.stack(phi(at, last + 1))
        return total + rule[1] / 2 * (table[:-1] - orders * table[1:]), None

    rule = jnp.asarray(np.stack([nodes, weights], axis=1), z.dtype)
    mean, _ = jax.lax.scan(add, jnp.zeros_like(quotient), rule)
    return jnp.where(far[None], quotient, mean)
