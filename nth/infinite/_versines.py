"""1 − cos of the angles between activations, to full accuracy.

Where two points coincide the angle is zero, and its cosine loses half of the digits.
"""

import functools
from collections.abc import Callable, Sequence
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
    sides: tuple[Float[Array, "*b r d"], Float[Array, "*b c d"]],
    cross: Float[Array, "..."],
    of_pairs: Callable[[Array, Array], tuple[Array, Array]],
    same: Bool[Array, "..."] | None,
) -> Float[Array, "..."]:
    """½‖x/‖x‖ − x′/‖x′‖‖², exactly zero where a point is paired with itself (`same`).

    From `cross`, which is xᵀx′, unless two points are so close that it would lose
    digits. `of_pairs` gives numbers of the points of both sides at the pairs.
    """
    norms = [safe_root(jnp.sum(x**2, axis=-1)) for x in sides]
    scales = [1 / jnp.where(norm > 0, norm, 1) for norm in norms]
    first, second = of_pairs(*scales)
    half, other = of_pairs(*((norm > 0).astype(norm.dtype) / 2 for norm in norms))
    versine = half + other - cross * (first * second)
    if same is not None:
        versine = jnp.where(same, 1, versine)

    def exact() -> Array:
        units = [
            jnp.moveaxis(x * scale[..., None], -1, 0)
            for x, scale in zip(sides, scales, strict=True)
        ]

        def add(total: Array, entries: list[Array]) -> tuple[Array, None]:
            one, other = of_pairs(*entries)
            return total + (one - other) ** 2 / 2, None

        return jax.lax.scan(add, jnp.zeros_like(versine), units)[0]

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
