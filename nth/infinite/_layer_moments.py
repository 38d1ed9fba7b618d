"""Second moments of the activations of two points, at pairs of positions in space."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._angles import safe_root
from ._recursion import LayerMaps
from ._versines import versine_of_moments, versine_of_sum

# What entries of the activations are: numbers of a given point; Gaussian variables; or
# functions of these, of which layers use second moments only.
INPUTS, GAUSSIAN, FEATURES = "inputs", "gaussian", "features"


class Moments(NamedTuple):
    """Moments of the activations of x and x′, means over channels, and their NTK.

    Each array has the axes of `shape` if only equal positions of x and x′ are compared;
    otherwise `cross`, `versine` and `ntk` have those of x, then those of x′.
    """

    cross: Float[Array, "..."]
    ntk: Float[Array, "..."]
    versine: Float[Array, "..."] | None
    """1 − cos of the angle, to full accuracy; `None` if no activation needs it."""

    first: Float[Array, "..."]
    second: Float[Array, "..."]
    """Second moments of each point at each position."""

    change: Float[Array, ""]
    """The largest error estimate of a Gaussian integral so far."""

    kind: str
    shape: tuple[int, ...]
    """The numbers of positions in each dimension."""

    fan: int
    """Entries at a position, in units of the width; of inputs their number."""


class Walk(NamedTuple):
    """How moments are propagated through layers."""

    parameterization: str
    nodes: int
    all_positions: bool
    """Whether each position of x is compared with every position of x′."""

    by_angle: bool
    """Whether versines are propagated."""

    variances: Callable[[Array, tuple[int, ...]], tuple[Array, Array]]
    """The second moments of each point after a layer, from `cross` and the shape."""

    def on_pairs(
        self, first: Array, second: Array, positions: int
    ) -> tuple[Array, Array]:
        """Numbers of both points, the last axes of which are positions, as arrays that
        broadcast over the pairs."""
        if not self.all_positions:
            return first, second
        split = first.ndim - positions
        second = jnp.expand_dims(second, range(split, split + positions))
        return jnp.expand_dims(first, range(first.ndim, first.ndim + positions)), second

    def versine_of_sum(
        self,
        first: Sequence[Array],
        second: Sequence[Array],
        versines: Sequence[Array],
        positions: int,
    ) -> Array:
        """`versine_of_sum` of parts with the second moments of each point."""
        pairs = [
            self.on_pairs(left, right, positions)
            for left, right in zip(first, second, strict=True)
        ]
        lefts, rights = [left for left, _ in pairs], [right for _, right in pairs]
        return versine_of_sum(lefts, rights, list(versines))

    def rates(
        self, sigmas: tuple[Any, Any], use_bias: bool, of: Moments, fan_in: int
    ) -> LayerMaps:
        """The rates of a layer with inputs of the moments `of`, means over `fan_in`."""
        dtype = of.cross.dtype
        sigma_w, sigma_b = (jnp.asarray(sigma, dtype) for sigma in sigmas)
        one = jnp.ones((), dtype)
        weight, bias = sigma_w**2, (sigma_b**2 if use_bias else 0 * one)
        if self.parameterization == "ntk":
            return LayerMaps(weight, bias, weight, bias)
        if self.parameterization == "nth":
            # The first layer of the paper is not divided by the root of its fan-in.
            count = one * (fan_in if of.kind == INPUTS else 1)
            return LayerMaps(count * weight, bias, count, one if use_bias else 0 * one)
        count = one * (0 if of.kind == INPUTS else fan_in)
        return LayerMaps(weight, bias, count, 0 * one)

    def next(self, old: Moments, cross: Array, **changes: Any) -> Moments:
        """`old` after a layer, with its changes; a versine of `None` is computed from
        `cross`."""
        made = old._replace(cross=cross, **changes)
        first, second = self.variances(cross, made.shape)
        made = made._replace(first=first, second=second)
        if self.by_angle and made.versine is None:
            sides = self.on_pairs(first, second, len(made.shape))
            made = made._replace(versine=versine_of_moments(cross, *sides))
        return made


def first_moments(
    walk: Walk, x1: Float[Array, "c *space"], x2: Float[Array, "c *space"]
) -> Moments:
    """The moments of two inputs."""
    shape, size = x1.shape[1:], len(x1)
    left, right = walk.on_pairs(x1, x2, len(shape))
    cross = jnp.mean(left * right, axis=0)
    versine = None
    if walk.by_angle:
        left, right = walk.on_pairs(_unit(x1), _unit(x2), len(shape))
        versine = jnp.sum((left - right) ** 2, axis=0) / 2
    zero = jnp.zeros((), cross.dtype)
    none = jnp.zeros_like(cross)
    start = Moments(cross, none, versine, none, none, zero, INPUTS, shape, size)
    return walk.next(start, cross)


def _unit(x: Float[Array, "c *space"]) -> Float[Array, "c *space"]:
    norm = safe_root(jnp.sum(x**2, axis=0, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


class Parts(NamedTuple):
    """The arrays of `Moments` at each place of a patch, of the positions of its center.

    Sums over places are written out, so that they are computed in one pass.
    """

    cross: Sequence[Float[Array, "..."]]
    ntk: Sequence[Float[Array, "..."]]
    versine: Sequence[Float[Array, "..."]] | None
    first: Sequence[Float[Array, "..."]]
    second: Sequence[Float[Array, "..."]]
    shape: tuple[int, ...]


def affine(walk: Walk, old: Moments, parts: Parts, rates: LayerMaps) -> Moments:
    """Weights, whose inputs have the mean of the moments `parts` over their places, and
    bias."""
    count = len(parts.cross)
    weight = rates.weight / count
    cross = jnp.asarray(sum(parts.cross))
    ntk = weight * sum(parts.ntk) + rates.weight_rate / count * cross + rates.bias_rate
    versine = None
    if parts.versine is not None:
        sides = [[weight * v for v in side] for side in (parts.first, parts.second)]
        constant = rates.bias * jnp.ones_like(parts.first[0])
        sides = [[*side, constant] for side in sides]
        versines = [*parts.versine, jnp.zeros_like(parts.versine[0])]
        versine = walk.versine_of_sum(sides[0], sides[1], versines, len(parts.shape))
    cross = weight * cross + rates.bias
    changes = {"ntk": ntk, "versine": versine, "shape": parts.shape}
    return walk.next(old, cross, kind=GAUSSIAN, fan=1, **changes)


def patches(
    walk: Walk,
    old: Moments,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: str,
) -> Parts:
    """The moments at each place of a patch, for each output."""
    pads, counts = zip(
        *(
            _padding(length, size, stride, padding)
            for length, size, stride in zip(old.shape, sizes, strides, strict=True)
        ),
        strict=True,
    )

    def shifted(array: Array, sides: int) -> list[Array]:
        mode = "wrap" if padding == "CIRCULAR" else "constant"
        padded = jnp.pad(array, pads * sides, mode=mode)
        rows = []
        for start in product(*map(range, sizes)):
            cut = tuple(
                slice(first, first + (count - 1) * stride + 1, stride)
                for first, count, stride in zip(start, counts, strides, strict=True)
            )
            rows.append(padded[cut * sides])
        return rows

    pairs = 2 if walk.all_positions else 1
    return Parts(
        cross=shifted(old.cross, pairs),
        ntk=shifted(old.ntk, pairs),
        versine=None if old.versine is None else shifted(old.versine, pairs),
        first=shifted(old.first, 1),
        second=shifted(old.second, 1),
        shape=counts,
    )


def _padding(
    length: int, size: int, stride: int, padding: str
) -> tuple[tuple[int, int], int]:
    """Positions added on each side, and the number of outputs."""
    if padding == "VALID":
        return (0, 0), (length - size) // stride + 1
    count = -(-length // stride)
    added = max((count - 1) * stride + size - length, 0)
    return (added // 2, added - added // 2), count
