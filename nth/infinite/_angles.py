"""Roots and angles of pairs of points, with the derivatives that ReLU networks use."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# The degree of the polynomial for arcsin: its error is below rounding error.
_DEGREE = 19


@jax.custom_jvp
def safe_root(x: Array) -> Array:
    """√x, 0 for negative x, with derivative 0 at x = 0.

    The root is the last operation: XLA keeps its result, and computes cheaper ones
    again for each pair of points that uses them.
    """
    return jnp.sqrt(jnp.maximum(x, 0))


@safe_root.defjvp
def _safe_root_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    root = safe_root(*primals)
    positive = root > 0
    slope = jnp.where(positive, 0.5 / jnp.where(positive, root, 1), 0)
    return root, slope * tangents[0]


def _arcsine_series() -> np.ndarray:
    """Coefficients, from the highest, of arcsin(√w)/√w in powers of 4w − 1, for w in
    [0, ½]: of its Chebyshev interpolant, which converges as (3 + √8)^(−degree)."""
    count = _DEGREE + 1
    odd, step = 2 * np.arange(count) + 1, np.arccos(np.longdouble(0)) / count
    roots = np.sqrt((1 + np.cos(odd * step)) / 4)
    # Angles below 2π: `chebinterpolate` of NumPy loses two digits.
    waves = np.cos(np.arange(count)[:, None] * odd % (4 * count) * step) * 2 / count
    chebyshev = waves @ (np.arcsin(roots) / roots)
    chebyshev[0] /= 2
    return np.polynomial.chebyshev.cheb2poly(chebyshev)[::-1].astype(float)


@jax.custom_jvp
def angle(versine: Array) -> Array:
    """θ as a function of 1 − cos θ; its slope, infinite at 0 and π, is defined as 0.

    This is the mean of the slopes in all directions. With w = sin² ½θ the angle is
    2 arcsin √w, a root times a polynomial, which is vectorized: XLA calls arctan2 and
    arccos for one number at a time, at 20 times the cost of a root.
    """
    half = jnp.clip(versine / 2, 0, 1)
    small = jnp.minimum(half, 1 - half)
    total = jnp.zeros_like(small)
    for coefficient in _ARCSINE.tolist():
        total = total * (4 * small - 1) + coefficient
    # The root last: XLA does not compute it again for each operation that uses it.
    near = 2 * jnp.sqrt(small * total**2)
    return jnp.where(half <= 0.5, near, math.pi - near)


_ARCSINE = _arcsine_series()


def _sine(versine: Array) -> Array:
    return jnp.sqrt(jnp.maximum(versine * (2 - versine), 0))


@angle.defjvp
def _angle_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ((versine,), (moved,)) = primals, tangents
    sine = safe_root(versine * (2 - versine))
    slope = jnp.where(sine > 0, 1 / jnp.where(sine > 0, sine, 1), 0)
    return angle(versine), slope * moved


@jax.custom_jvp
def relu_versine(versine: Array) -> Array:
    """1 − (sin θ + (π − θ) cos θ)/π."""
    lune = _sine(versine) - angle(versine) * (1 - versine)
    return versine - lune / math.pi


@relu_versine.defjvp
def _relu_versine_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    ((versine,), (moved,)) = primals, tangents
    return relu_versine(versine), (1 - angle(versine) / math.pi) * moved
