"""Gaussian means of an activation and of its derivative, and their derivatives.

For (u, v) Gaussian with variances a, b and covariance c, the moments of a layer are
E φ(u)φ(v) and E φ′(u)φ′(v). They are in closed form for some activations, and sums over
nodes for others. Where u and v coincide the angle between them is zero, and cos loses
half of the digits of the angle; so ReLU, which has a kink there, uses 1 − cos.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from .._network.activations import ACTIVATIONS
from ._angles import angle, relu_versine, safe_root

Function: TypeAlias = Callable[[Array], Array]

# Nodes lie within this radius, outside of which the Gaussian measure is 3e-18.
RADIUS = 9.0
# The number of pairs evaluated together, each on about 10,000 nodes.
_PAIRS_AT_ONCE = 32


class Pairs(NamedTuple):
    """Gaussian variables at points i and j, one entry for each pair of points, or
    arrays that are broadcast to that.

    `versine` is 1 − c/√(ab), to full accuracy; `None` if not needed.
    """

    first: Float[Array, "..."]
    second: Float[Array, "..."]
    cross: Float[Array, "..."]
    versine: Float[Array, "..."] | None


class Moments(NamedTuple):
    """E φ(u)φ(v), its versine, and E φ′(u)φ′(v)."""

    value: Float[Array, "..."]
    versine: Float[Array, "..."] | None
    slope: Float[Array, "..."]


# Closed forms: (E φ(u)², the moments of pairs).


def _linear(pairs: Pairs) -> Moments:
    return Moments(pairs.cross, None, jnp.ones_like(pairs.cross))


def _erf(pairs: Pairs) -> Moments:
    """Williams (1997), eq. 11, and its derivative in c; arcsin(c/√(ab)) as an arctan,
    which XLA computes in less time."""
    a, b, c = 1 + 2 * pairs.first, 1 + 2 * pairs.second, 2 * pairs.cross
    inverse = 1 / jnp.sqrt(a * b - c**2)
    value = 2 / math.pi * jnp.arctan(c * inverse)
    return Moments(value, None, 4 / math.pi * inverse)


def _sin(pairs: Pairs) -> Moments:
    mean = (pairs.first + pairs.second) / 2
    same, opposite = jnp.exp(pairs.cross - mean), jnp.exp(-pairs.cross - mean)
    return Moments((same - opposite) / 2, None, (same + opposite) / 2)


def _relu(pairs: Pairs) -> Moments:
    """Cho & Saul (2009), eqs. 3 to 6, the arc-cosine kernels of degrees 0 and 1."""
    assert pairs.versine is not None
    versine = relu_versine(pairs.versine)
    scale = safe_root(pairs.first) * safe_root(pairs.second)
    slope = (math.pi - angle(pairs.versine)) / (2 * math.pi)
    return Moments(scale * (1 - versine) / 2, versine, slope)


_CLOSED: Mapping[str, tuple[Function, Callable[[Pairs], Moments]]] = MappingProxyType(
    {
        "linear": (lambda a: a, _linear),
        "erf": (lambda a: 2 / math.pi * jnp.arcsin(2 * a / (1 + 2 * a)), _erf),
        "sin": (lambda a: -jnp.expm1(-2 * a) / 2, _sin),
        "relu": (lambda a: a / 2, _relu),
    }
)


class Rule(NamedTuple):
    """The computation of the moments of one activation."""

    square: Callable[[Float[Array, " n"]], Float[Array, " n"]]
    """a ↦ E φ(u)²."""

    moments: Callable[[Pairs], Moments]

    change: Callable[[Float[Array, " n"]], Float[Array, ""]]
    """The relative change of a mean when the spacing of the nodes is doubled; 0 for a
    closed form. For an analytic φ the error itself is about its square."""

    by_angle: bool
    """Whether the moments are functions of versines."""

    closed: bool
    """Whether the moments are in closed form."""


def rule_for(activation: Function, nodes: int) -> Rule:
    """The closed form of `activation`, or sums over `nodes` nodes in each direction."""
    for name, (square, moments) in _CLOSED.items():
        if activation is ACTIVATIONS[name]:
            zero = partial(jnp.sum, initial=0.0, where=False)
            return Rule(square, moments, zero, name == "relu", True)
    slope = _Derivative(activation)

    def by_sums(pairs: Pairs) -> Moments:
        both = ((activation, activation), (slope, slope))
        value, slopes = _pair_means(both, nodes, *pairs[:3])
        return Moments(value, None, slopes)

    def change(a: Float[Array, " n"]) -> Float[Array, ""]:
        worst = []
        for function in (_Square(activation), _Square(slope)):
            fine, coarse = _mean(function, nodes, a), _mean(function, nodes // 2 + 1, a)
            size = jnp.where(fine > 0, fine, 1)
            worst.append(jnp.max(jnp.abs(fine - coarse) / size))
        return jnp.maximum(*worst)

    return Rule(
        partial(_mean, _Square(activation), nodes), by_sums, change, False, False
    )


def kink_at_zero(function: Function, dtype: DTypeLike) -> Float[Array, ""]:
    """The jump of the slope at 0, in units of the slope at ±1.

    The nodes are symmetric about 0, so sums over every second node show no kink there.
    """
    near = float(jnp.finfo(dtype).eps) ** 0.5
    z = jnp.asarray([near, -near, 1.0, -1.0], dtype)
    slopes = jax.jvp(function, (z,), (jnp.ones_like(z),))[1]
    size = jnp.maximum(jnp.max(jnp.abs(slopes[2:])), near)
    jump = jnp.abs(slopes[0] - slopes[1]) / size
    return jnp.where(jump > 1e-2, jump, 0)


class _Derivative(eqx.Module):
    """φ′ of an elementwise φ; equal for equal φ, so that jit caches are shared."""

    function: Function = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        return jax.jvp(self.function, (x,), (jnp.ones_like(x),))[1]


class _Square(eqx.Module):
    """φ²."""

    function: Function = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        return self.function(x) ** 2


def _line(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the trapezoidal rule for the Gaussian measure.

    For a φ that is analytic within s of the real line its error is about
    e^{−2πs/(h√a)}, h the spacing of the nodes (Trefethen & Weideman 2014).
    """
    x, step = np.linspace(-RADIUS, RADIUS, nodes, retstep=True)
    return x, step * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _mean(
    function: Function, nodes: int, variance: Float[Array, " n"]
) -> Float[Array, " n"]:
    """E F(u)."""
    x, weights = (jnp.asarray(row, variance.dtype) for row in _line(nodes))
    return function(jnp.sqrt(variance)[:, None] * x[None]) @ weights


@_mean.defjvp
def _mean_jvp(
    function: Function, nodes: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # d/da E F(u) = ½ E F″(u): smooth at a = 0, as √a is not.
    curvature = _Derivative(_Derivative(function))
    moved = _mean(curvature, nodes, *primals) * tangents[0] / 2
    return _mean(function, nodes, *primals), moved


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _pair_means(
    functions: tuple[tuple[Function, Function], ...],
    nodes: int,
    first: Float[Array, " P"],
    second: Float[Array, " P"],
    cross: Float[Array, " P"],
) -> tuple[Float[Array, " P"], ...]:
    """E F(u) G(v) for each (F, G), by nodes of the plane that lie in the radius."""
    x, weights = _line(nodes)
    inside = x[:, None] ** 2 + x**2 <= RADIUS**2
    plane = np.stack(np.broadcast_arrays(x[:, None], x))[:, inside]
    weights = np.outer(weights, weights)[inside]
    plane, weights = (jnp.asarray(part, cross.dtype) for part in (plane, weights))
    sizes = jnp.sqrt(first), jnp.sqrt(second)
    scale = sizes[0] * sizes[1]
    cosine = jnp.clip(cross / jnp.where(scale > 0, scale, 1), -1, 1)
    half = jnp.sqrt((1 + cosine) / 2), jnp.sqrt((1 - cosine) / 2)

    def pair_mean(pair: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        size_u, size_v, along, across = pair
        middle, apart = along * plane[0], across * plane[1]
        u, v = size_u * (middle + apart), size_v * (middle - apart)
        return tuple(jnp.vdot(weights, f(u) * g(v)) for f, g in functions)

    batch = min(_PAIRS_AT_ONCE, max(1, len(cross)))
    return jax.lax.map(pair_mean, (*sizes, *half), batch_size=batch)


@_pair_means.defjvp
def _pair_means_jvp(
    functions: tuple[tuple[Function, Function], ...],
    nodes: int,
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Price's theorem: ∂/∂c = E F′G′ and ∂/∂a = ½ E F″G, also smooth where u = v."""
    parts: list[tuple[Function, Function]] = []
    for f, g in functions:
        f1, g1 = _Derivative(f), _Derivative(g)
        parts += [(_Derivative(f1), g), (f, _Derivative(g1)), (f1, g1)]
    count = len(functions)
    every = _pair_means((*functions, *parts), nodes, *primals)
    d_first, d_second, d_cross = tangents
    moved = tuple(
        (by_first * d_first + by_second * d_second) / 2 + by_cross * d_cross
        for by_first, by_second, by_cross in (
            every[count + 3 * k : count + 3 * k + 3] for k in range(count)
        )
    )
    return every[:count], moved
