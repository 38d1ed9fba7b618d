"""1 − cos of the angles between activations, to full accuracy.

Where two points coincide the angle is zero, and its cosine loses half of the digits.
"""

import functools
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._custom_types import Scalar
from ._angles import safe_root

# 1 − cos of an angle below which a difference from 1 loses too many digits of it.
_CLOSE = 1e-2
# In units of rounding error: below it a difference from 1 counts as 0.
_ROUNDING = 16


def first_versine(
    first: Float[Array, "r d"],
    second: Float[Array, "c d"],
    same: Bool[Array, "r c"] | None,
) -> Float[Array, "r c"]:
    """½‖x/‖x‖ − x′/‖x′‖‖², exactly zero at equal points.

    Expanded into a product of matrices, unless two points are so close that it would
    lose digits.
    """
    sides = (first, second)
    norms = [safe_root(jnp.sum(x**2, axis=1, keepdims=True)) for x in sides]
    left, right = (
        x / jnp.where(norm > 0, norm, 1) for x, norm in zip(sides, norms, strict=True)
    )
    squares = [(norm[:, 0] > 0).astype(norm.dtype) / 2 for norm in norms]
    versine = squares[0][:, None] + squares[1][None] - left @ right.T
    if same is not None:
        versine = jnp.where(same, 1, versine)

    def exact() -> Array:
        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return total + (pair[0][:, None] - pair[1][None]) ** 2 / 2, None

        return jax.lax.scan(add, jnp.zeros_like(versine), (left.T, right.T))[0]

    close = jnp.any(versine < _CLOSE)
    versine = jax.lax.cond(close, exact, lambda: versine)
    return versine if same is None else jnp.where(same, 0, versine)


def with_bias(
    versine: Float[Array, "..."],
    first: Float[Array, "..."],
    second: Float[Array, "..."],
    bias: Scalar,
) -> Float[Array, "..."]:
    """1 − cos of the angle after a bias is added, as a sum of positive terms.

    With p, q the two standard deviations and β that of the bias, it is
    p q · versine + β²(p − q)²/(√((p²+β²)(q²+β²)) + p q + β²) over √((p²+β²)(q²+β²)).
    """
    p, q = safe_root(first), safe_root(second)
    scale = safe_root(p**2 + bias) * safe_root(q**2 + bias)
    whole = scale + p * q + bias
    apart = bias * (p - q) ** 2 / jnp.where(whole > 0, whole, 1)
    turned = (p * q * versine + apart) / jnp.where(scale > 0, scale, 1)
    return jnp.where(scale > 0, turned, versine)


_Parts: TypeAlias = Float[Array, "k ..."] | Sequence[Float[Array, "..."]]


def versine_of_sum(first: _Parts, second: _Parts, versines: _Parts) -> Array:
    """1 − cos of the angle between two sums of orthogonal parts, from the variances of
    the parts and their versines, as a sum of positive terms.

    The parts are the first axis of an array, or a sequence, whose sums are written out
    and so computed in one pass. With p and q the standard deviations of the parts,
    |p|²|q|² − (p·q)² is |p|² |q − t p|² for t = p·q/|p|².
    """
    p, q = (jax.tree.map(safe_root, parts) for parts in (first, second))
    norm, other = (
        safe_root(_total(jax.tree.map(jnp.square, parts))) for parts in (p, q)
    )
    inner = _total(jax.tree.map(jnp.multiply, p, q))
    scale = norm * other
    ratio = inner / jnp.where(norm > 0, norm**2, 1)
    rest = _total(jax.tree.map(lambda p, q: (q - ratio * p) ** 2, p, q))
    apart = norm**2 * rest / jnp.where(scale > 0, scale + inner, 1)
    own = _total(jax.tree.map(lambda p, q, v: p * q * v, p, q, versines))
    return jnp.where(scale > 0, (own + apart) / jnp.where(scale > 0, scale, 1), 0)


def _total(parts: _Parts) -> Array:
    if isinstance(parts, Array):
        return jnp.sum(parts, axis=0)
    return functools.reduce(jnp.add, parts)


def versine_of_moments(
    cross: Float[Array, "..."], first: Float[Array, "..."], second: Float[Array, "..."]
) -> Float[Array, "..."]:
    """1 − cos as a difference, with half of the digits of the angle, and 0 where it is
    rounding error."""
    scale = safe_root(first * second)
    versine = 1 - cross / jnp.where(scale > 0, scale, 1)
    small = _ROUNDING * jnp.finfo(cross.dtype).eps
    return jnp.where((scale > 0) & (versine > small), versine, 0)
