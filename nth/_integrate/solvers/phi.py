"""Time integrals of polynomials against decaying exponentials: φ functions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._analytic.decay_integrals import nested_decay
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
    rates: Float[Array, " n"],
    modes: Float[Array, "n n"],
    t: Scalar,
    forcing: Float[Array, "k n"],
) -> Float[Array, " n"]:
    """∫₀ᵗ x(s) ds for dx/ds = −A x + Σ_i s^i b_i, x(0) = 0, with b the `forcing`.

    A is the symmetric `matrix`, with eigenvalues `rates` and eigenvectors `modes`. It
    is Σ_i i! t^{i+2} φ_{i+2}(−tA) b_i.
    """
    del matrix
    weights = phi(-t * rates, len(forcing) + 1)[2:]
    inside = forcing @ modes
    total = jnp.zeros_like(rates)
    for i, weight in enumerate(weights):
        total = total + math.factorial(i) * t ** (i + 2) * weight * inside[i]
    return modes @ total


@double_integral.defjvp
def _double_integral_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """Exact also where eigenvalues coincide (Daleckii & Krein)."""
    matrix, rates, modes, t, forcing = primals
    d_matrix, _, _, d_t, d_forcing = tangents
    value = double_integral(matrix, rates, modes, t, forcing)
    turned = modes.T @ (d_matrix + d_matrix.T) @ modes / 2
    inside = forcing @ modes
    pair = rates[:, None], rates[None, :]
    change = jnp.zeros_like(rates)
    speed = jnp.zeros_like(rates)
    values = phi(-t * rates, len(forcing))[1:]
    zero = jnp.zeros_like(pair[0])
    for i, row in enumerate(inside):
        # t^{i+2} φ_{i+2}(−tλ) is the nested integral of i+2 zero rates and λ.
        slopes = -nested_decay(*([zero] * (i + 2)), *pair, t=t)
        change = change + math.factorial(i) * ((slopes * turned) @ row)
        speed = speed + math.factorial(i) * t ** (i + 1) * values[i] * row
    d_value = modes @ (change + d_t * speed)
    return value, d_value + double_integral(matrix, rates, modes, t, d_forcing)
