"""Layers of networks whose infinite width is computed: descriptions without weights."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._internal.validation import (
    require_bool,
    require_integer,
    require_name,
    require_scale,
)
from .._network.activations import as_activation
from ._gaussian_moments import Pairs, kink_at_zero, rule_for
from ._layer_moments import (
    FEATURES,
    GAUSSIAN,
    INPUTS,
    Moments,
    Parts,
    Walk,
    affine,
    patches,
)
from ._versines import versine_of_sum


class AbstractLayer(eqx.Module):
    """Base class of the layers of [`nth.infinite.network_kernels`][]."""

    @abc.abstractmethod
    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        """The moments of two points after this layer."""


class Dense(AbstractLayer):
    """A fully connected layer, on inputs without dimensions of space.

    **Arguments:**

    - `sigma_w`, `sigma_b`: the scales of weights and bias, as for [`nth.MLP`][].
    - `use_bias`: whether there is a bias.
    """

    sigma_w: Any
    sigma_b: Any
    use_bias: bool = eqx.field(static=True)

    def __init__(
        self, sigma_w: Any = 1.0, *, use_bias: bool = False, sigma_b: Any = 1.0
    ):
        self.sigma_w = require_scale("sigma_w", sigma_w)
        self.sigma_b = require_scale("sigma_b", sigma_b)
        self.use_bias = require_bool("use_bias", use_bias)

    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        if moments.shape:
            raise ValueError(
                f"layers: Dense follows activations with positions {moments.shape}. "
                "Put Flatten() or GlobalAveragePool() before it."
            )
        sigmas = (self.sigma_w, self.sigma_b)
        rates = walk.rates(sigmas, self.use_bias, moments, moments.fan)
        return affine(walk, moments, _one_part(moments), rates)


class Conv(AbstractLayer):
    """A convolution, in as many dimensions as the inputs have.

    Its fan-in is the number of channels times that of the places of the kernel.

    **Arguments:**

    - `kernel_size`, `stride`: a number, or one for each dimension.
    - `sigma_w`, `sigma_b`, `use_bias`: as for [`nth.infinite.Dense`][]; the bias is one
        number for each channel.
    - `padding`: `"SAME"` (zeros), `"VALID"` or `"CIRCULAR"`, as in `equinox.nn.Conv`
        and `jax.lax.conv_general_dilated`.
    """

    sigma_w: Any
    sigma_b: Any
    kernel_size: int | tuple[int, ...] = eqx.field(static=True)
    stride: int | tuple[int, ...] = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        sigma_w: Any = 1.0,
        *,
        stride: int | Sequence[int] = 1,
        padding: Literal["SAME", "VALID", "CIRCULAR"] = "SAME",
        use_bias: bool = False,
        sigma_b: Any = 1.0,
    ):
        self.kernel_size = _numbers("kernel_size", kernel_size)
        self.stride = _numbers("stride", stride)
        self.padding = require_name("padding", padding, ("SAME", "VALID", "CIRCULAR"))
        self.sigma_w = require_scale("sigma_w", sigma_w)
        self.sigma_b = require_scale("sigma_b", sigma_b)
        self.use_bias = require_bool("use_bias", use_bias)

    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        dimensions = len(moments.shape)
        if dimensions == 0:
            raise ValueError(
                "layers: Conv follows activations without positions. Give x1 of shape "
                "(points, channels, *positions), and Flatten or GlobalAveragePool "
                "after the last Conv."
            )
        sizes = _for_each("kernel_size", self.kernel_size, dimensions)
        strides = _for_each("stride", self.stride, dimensions)
        if any(s > n for s, n in zip(sizes, moments.shape, strict=True)):
            raise ValueError(
                f"layers: Conv with kernel_size {sizes} on positions {moments.shape}: "
                "give a smaller kernel_size."
            )
        parts = patches(walk, moments, sizes, strides, self.padding)
        sigmas = (self.sigma_w, self.sigma_b)
        fan_in = moments.fan * math.prod(sizes)
        rates = walk.rates(sigmas, self.use_bias, moments, fan_in)
        return affine(walk, moments, parts, rates)


class Activation(AbstractLayer):
    """An elementwise activation, after a `Dense` or `Conv` or a sum of these.

    **Arguments:**

    - `function`: a name or a function, as for [`nth.MLP`][].
    """

    function: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(self, function: str | Callable[[Array], Array] = "tanh"):
        self.function = as_activation(function)

    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        if moments.kind != GAUSSIAN:
            raise ValueError(
                f"layers: Activation follows {moments.kind}, which are not Gaussian at "
                "infinite width. Put Dense() or Conv() before it."
            )
        rule = rule_for(self.function, walk.nodes)
        sides = walk.on_pairs(moments.first, moments.second, len(moments.shape))
        pairs = Pairs(*sides, moments.cross, moments.versine)
        shape, dtype = moments.cross.shape, moments.cross.dtype
        if not rule.closed:  # sums over nodes take one pair at a time
            pairs = jax.tree.map(lambda x: jnp.broadcast_to(x, shape).ravel(), pairs)
        value, versine, slope = jax.tree.map(
            lambda x: jnp.reshape(x, shape), rule.moments(pairs)
        )
        change = rule.change(moments.first.ravel())
        if not rule.closed:
            change = jnp.maximum(change, kink_at_zero(self.function, dtype))
        return walk.next(
            moments,
            value,
            ntk=slope * moments.ntk,
            versine=versine,
            change=jnp.maximum(moments.change, change),
            kind=FEATURES,
        )


class Flatten(AbstractLayer):
    """All channels at all positions as the entries of one vector."""

    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        places = _equal_positions(walk, moments)
        versine = None
        if places.versine is not None:
            versine = versine_of_sum(places.first, places.second, places.versine)
        return walk.next(
            moments,
            jnp.mean(places.cross),
            ntk=jnp.mean(places.ntk),
            versine=versine,
            kind=INPUTS if moments.kind == INPUTS else FEATURES,
            shape=(),
            fan=math.prod(moments.shape) * moments.fan,
        )


class GlobalAveragePool(AbstractLayer):
    """The mean over all positions, of each channel."""

    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        if not moments.shape:
            raise ValueError(
                "layers: GlobalAveragePool follows activations without positions: "
                "leave it out."
            )
        means = jnp.mean(moments.cross), jnp.mean(moments.ntk)
        return walk.next(moments, means[0], ntk=means[1], versine=None, shape=())


def _one_part(of: Moments) -> Parts:
    """A patch with one place."""
    versine = None if of.versine is None else [of.versine]
    return Parts([of.cross], [of.ntk], versine, [of.first], [of.second], of.shape)


def _equal_positions(walk: Walk, moments: Moments) -> Moments:
    """Moments at equal positions of both points, over one axis."""
    count = math.prod(moments.shape)

    def places(array: Array) -> Array:
        if not walk.all_positions:
            return array.ravel()
        return jnp.diagonal(array.reshape(count, count))

    return moments._replace(
        cross=places(moments.cross),
        ntk=places(moments.ntk),
        versine=None if moments.versine is None else places(moments.versine),
        first=moments.first.ravel(),
        second=moments.second.ravel(),
    )


def _numbers(name: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(require_integer(name, entry, 1) for entry in value)
    return require_integer(name, value, 1)


def _for_each(
    name: str, value: int | tuple[int, ...], dimensions: int
) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dimensions
    if len(value) != dimensions:
        raise ValueError(
            f"layers: Conv has {name} {value}, and its inputs have {dimensions} "
            "dimensions of space: give one number for each."
        )
    return value
