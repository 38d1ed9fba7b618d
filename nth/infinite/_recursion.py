"""Recursion over layers for the kernels of infinitely wide networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float

from .._internal.validation import require_bool, require_name, require_scale
from ._gaussian_moments import Pairs, Rule, rule_for
from ._tiles import Matrices, by_tiles, symmetrized, written
from ._versines import first_versine, with_bias

# Points per side of a tile: few for sums over nodes, so that little work is repeated on
# the diagonal; for closed forms enough for all cores.
_TILE, _TILE_OF_SUMS = 512, 4
# The same without a loop, and the largest number of such tiles along a side.
_UNROLLED_TILE, _UNROLLED_TILES = 64, 4
# No loop is used up to these limits: pairs of points times layers, and layers.
_MOST_WHOLE, _MOST_UNROLLED = 2**16, 16


class LayerMaps(NamedTuple):
    """The maps of second moments S and the NTK Θ of the inputs of layers:

    Σ = weight·S + bias, and Θ′ = weight_rate·S + bias_rate + weight·(Σ̇ ∘ Θ).

    Each field has one entry for each layer, or is a scalar of one layer.
    """

    weight: Float[Array, "..."]
    bias: Float[Array, "..."]
    weight_rate: Float[Array, "..."]
    bias_rate: Float[Array, "..."]


class _Moments(NamedTuple):
    """Moments and NTK of pairs of points after a layer."""

    variances: tuple[Float[Array, "*b r"], Float[Array, "*b c"]]
    """Variances of the points on each side."""

    cross: Float[Array, "..."]
    versine: Float[Array, "..."] | None
    ntk: Float[Array, "..."]


_Sides = tuple[Float[Array, "*b r d"], Float[Array, "*b c d"]]


class _Pairs(NamedTuple):
    """Pairs of a point of each side: those at two arrays of indices, or all of them.

    `same` is where a pair is one point twice; `None` if none is known to be. Both sides
    may have leading axes.
    """

    indices: tuple[np.ndarray, np.ndarray] | None
    same: Bool[Array, "..."] | None = None

    def of(self, first: Array, second: Array) -> tuple[Array, Array]:
        """Numbers of the points of both sides, to be broadcast over the pairs."""
        if self.indices is None:
            return first[..., :, None], second[..., None, :]
        return first[self.indices[0]], second[self.indices[1]]


def checked_sigmas(
    parameterization: str, use_bias: bool, given: dict[str, Any], dtype: DTypeLike
) -> list[Array]:
    """`sigma_w`, `sigma_a` and `sigma_b`; `ValueError` for an option that is not
    valid."""
    require_name("parameterization", parameterization, ("nth", "ntk", "standard"))
    require_bool("use_bias", use_bias)
    return [jnp.asarray(require_scale(*item), dtype) for item in given.items()]


def layers_of(
    sigmas: list[Array], depth: int, parameterization: str, use_bias: bool, in_size: int
) -> LayerMaps:
    """All depth + 1 layers, from means over the `in_size` inputs unless in "nth"."""
    sigma_w, sigma_a, sigma_b = sigmas
    weight = jnp.stack([sigma_w] * depth + [sigma_a]) ** 2
    bias = jnp.full_like(weight, sigma_b**2 if use_bias else 0)
    one = jnp.ones_like(weight)
    if parameterization == "ntk":
        return LayerMaps(weight, bias, weight, bias)
    if parameterization == "nth":
        return LayerMaps(weight, bias, one, one if use_bias else 0 * one)
    if depth == 0:  # there is no width by which the NTK would grow
        return LayerMaps(weight, bias, in_size * one, one if use_bias else 0 * one)
    return LayerMaps(weight, bias, one.at[0].set(0), 0 * one)


@eqx.filter_jit
def recursion(
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"] | None,
    layers: LayerMaps,
    activation_and_nodes: tuple[Callable[[Array], Array], int],
    use_bias: bool,
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """Σ and Θ of the last layer."""
    rule = _Steps(rule_for(*activation_and_nodes), use_bias)
    sides = (x1, x1 if x2 is None else x2)
    computed = _at_once if _fits_whole(sides, layers) else _by_tiles
    return computed(rule, layers, sides, x2 is None)


def _fits_whole(sides: _Sides, layers: LayerMaps) -> bool:
    """Whether all pairs are computed together, and the loop over layers is unrolled.

    This is fastest for few pairs. It also has second derivatives where points coincide:
    in a `scan` they are NaN, because JAX drops the rules of `custom_jvp` from its body
    when a reverse-mode derivative is differentiated again.
    """
    depth = len(layers.weight) - 1
    fits = len(sides[0]) * len(sides[1]) * depth <= _MOST_WHOLE
    return fits and depth <= _MOST_UNROLLED


class _Steps(NamedTuple):
    """The moments of an activation, and whether layers have biases."""

    rule: Rule
    use_bias: bool


def _at_once(
    steps: _Steps, layers: LayerMaps, sides: _Sides, symmetric: bool
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    closed, shape = steps.rule.closed, (len(sides[0]), len(sides[1]))
    if closed and symmetric:
        return _by_unrolled_tiles(steps, layers, sides[0])
    if closed:
        nngp, ntk = _of_pairs(steps, layers, sides, _Pairs(None), unrolled=True)
        return nngp, ntk
    if symmetric:
        i, j = np.triu_indices(shape[0])
    else:
        i, j = np.indices(shape).reshape(2, -1)
    values = _of_pairs(steps, layers, sides, _Pairs((i, j)), unrolled=True)
    matrices = [jnp.zeros(shape, v.dtype).at[i, j].set(v) for v in values]
    if symmetric:
        matrices = [
            matrix.at[j, i].set(v) for matrix, v in zip(matrices, values, strict=True)
        ]
    return matrices[0], matrices[1]


def _by_unrolled_tiles(
    steps: _Steps, layers: LayerMaps, x: Float[Array, "n d"]
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """All tiles on and above the diagonal at once."""
    n = len(x)
    count = min(_UNROLLED_TILES, -(-n // _UNROLLED_TILE))
    size = -(-n // count)
    # The last tile overlaps with the previous one.
    starts = [min(k * size, n - size) for k in range(count)]
    i, j = np.triu_indices(count)
    points = np.array([start + np.arange(size) for start in starts])
    same = points[i, :, None] == points[j, None, :]
    pairs = _Pairs(None, jnp.asarray(same))
    values = _of_pairs(
        steps, layers, (x[points[i]], x[points[j]]), pairs, unrolled=True
    )
    zeros = jnp.zeros((n, n), x.dtype)
    kernels = zeros, zeros
    for tile, corner in enumerate(zip(i, j, strict=True)):
        at = [starts[k] for k in corner]
        parts = values[0][tile], values[1][tile]
        if at[0] == at[1]:
            parts = symmetrized(parts)
        kernels = written(kernels, parts, at)
        kernels = written(kernels, [part.T for part in parts], at[::-1])
    return kernels


def _by_tiles(
    steps: _Steps, layers: LayerMaps, sides: _Sides, symmetric: bool
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """Tile by tile, in place: the memory is that of both kernels and one tile."""
    closed = steps.rule.closed

    def of_tile(corner: list[Array], shape: list[int]) -> Matrices:
        left, right = (
            jax.lax.dynamic_slice_in_dim(x, start, size)
            for x, start, size in zip(sides, corner, shape, strict=True)
        )
        if closed:
            pairs = _Pairs(None, _same_points(corner, shape) if symmetric else None)
        else:
            every = np.indices(shape).reshape(2, -1)
            pairs = _Pairs((every[0], every[1]))
        first, second = _of_pairs(steps, layers, (left, right), pairs)
        return first.reshape(shape), second.reshape(shape)

    points = len(sides[0]), len(sides[1])
    most = _TILE if closed else _TILE_OF_SUMS
    return by_tiles(of_tile, points, most, sides[0].dtype, symmetric=symmetric)


def _same_points(corner: list[Array], shape: list[int]) -> Bool[Array, "r c"]:
    """Where a tile at `corner` pairs a point with itself."""
    i, j = (start + jnp.arange(size) for start, size in zip(corner, shape, strict=True))
    return i[:, None] == j[None]


def _of_pairs(
    steps: _Steps,
    layers: LayerMaps,
    sides: _Sides,
    pairs: _Pairs,
    unrolled: bool = False,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Σ and Θ of the last layer at pairs with one point from each side."""
    rule = steps.rule
    cross, versine = sides[0] @ sides[1].mT, None
    if pairs.indices is not None:
        cross = cross[pairs.indices]
    if rule.by_angle:
        versine = first_versine(sides, cross, pairs.of, pairs.same)
    start = _Moments(
        (jnp.sum(sides[0] ** 2, axis=-1), jnp.sum(sides[1] ** 2, axis=-1)),
        cross,
        versine,
        jnp.zeros_like(cross),
    )

    def deeper(moments: _Moments, layer: LayerMaps) -> tuple[_Moments, None]:
        variances = moments.variances
        cross, versine, slope = rule.moments(
            Pairs(*pairs.of(*variances), moments.cross, moments.versine)
        )
        squares = (rule.square(variances[0]), rule.square(variances[1]))
        activated = _Moments(squares, cross, versine, moments.ntk)
        return _affine(activated, slope, layer, pairs, steps.use_bias), None

    first, rest = (
        jax.tree.map(lambda part, at=at: part[at], layers) for at in (0, slice(1, None))
    )
    moments = _affine(start, jnp.zeros_like(cross), first, pairs, steps.use_bias)
    moments, _ = _layer_by_layer(deeper, moments, rest, unrolled)
    return moments.cross, moments.ntk


def _layer_by_layer(
    step: Callable[[Any, LayerMaps], tuple[Any, Any]],
    carry: Any,
    layers: LayerMaps,
    whole: bool,
) -> tuple[Any, Any]:
    """`jax.lax.scan` over layers, unrolled if `whole`."""
    if not whole or len(layers.weight) == 0:
        return jax.lax.scan(step, carry, layers)
    outputs = []
    for k in range(len(layers.weight)):
        carry, output = step(carry, jax.tree.map(lambda part, k=k: part[k], layers))
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


def _affine(
    moments: _Moments,
    slope: Float[Array, "..."],
    layer: LayerMaps,
    pairs: _Pairs,
    use_bias: bool,
) -> _Moments:
    """Apply weights and biases."""
    (first, second), cross, versine, ntk = moments
    ntk = layer.weight_rate * cross + layer.bias_rate + layer.weight * slope * ntk
    if versine is not None and use_bias:  # weights alone keep angles
        left, right = pairs.of(layer.weight * first, layer.weight * second)
        versine = with_bias(versine, left, right, layer.bias)
    variances = (layer.weight * first + layer.bias, layer.weight * second + layer.bias)
    return _Moments(variances, layer.weight * cross + layer.bias, versine, ntk)


def largest_change(
    rule: Rule, layers: LayerMaps, points: Float[Array, "m d"]
) -> Float[Array, ""]:
    """The largest error estimate over all points and layers."""

    def deeper(variance: Array, layer: LayerMaps) -> tuple[Array, Array]:
        variance = layer.weight * variance + layer.bias
        return rule.square(variance), rule.change(variance)

    hidden = jax.tree.map(lambda part: part[:-1], layers)
    variance = jnp.sum(points**2, axis=1)
    return jnp.max(jax.lax.scan(deeper, variance, hidden)[1], initial=0)
