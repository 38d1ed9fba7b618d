"""Recognition of networks that are provably chains of dense layers.

A chain has a structure that kernels can use: the gradient of an output with respect to
a weight is the outer product of two vectors. A chain is recognized by exact type, which
excludes subclasses, shared weights and layers under `vmap`, and the jaxpr of an
activation must prove that it acts on each neuron separately. All other networks use the
generic algorithms.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._custom_types import Params
from .base import OutputFunction
from .mlp import MLP

# Primitives whose k-th output depends only on the k-th entries of their operands.
_ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e
    bessel_i1e bitcast_convert_type cbrt ceil clamp convert_element_type copy cos
    cosh custom_jvp_call digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge
    gt integer_pow is_finite jit le lgamma log log1p log2 logistic lt max min mul
    ne neg not one_minus_square or pjit polygamma polynomial pow rem round rsqrt
    select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)


class Layer(eqx.Module):
    """x ↦ σ(W x + b), with the scales of the forward pass included in W and b.

    For a parameter w that enters the forward pass as s·w, training changes s·w by s²
    times the gradient with respect to s·w: s² is its rate, 0 if it is frozen.
    """

    weight: Float[Array, "fan_out fan_in"]
    bias: Float[Array, " fan_out"] | None
    weight_rate: Any
    bias_rate: Any
    activation: Callable[[Array], Array] | None = eqx.field(static=True)


class _Scaled(eqx.Module):
    """z ↦ s σ(z) for one vector."""

    function: Callable[[Array], Array]
    scale: float

    def __call__(self, z: Float[Array, " width"]) -> Float[Array, " width"]:
        return self.scale * self.function(z)


class _Mapped(eqx.Module):
    """z ↦ σ(z₁), σ(z₂), … for one vector, as Equinox applies σ."""

    function: Callable[[Array], Array]

    def __call__(self, z: Float[Array, " width"]) -> Float[Array, " width"]:
        return jax.vmap(self.function)(z)


def as_layers(
    apply: OutputFunction, params: Params, x: Any
) -> tuple[Layer, ...] | None:
    """The layers of a fully connected network, or `None` if it is not provably one.

    `x` is one input. A parameter is trained if `params` contains it.
    """
    network = apply.network(params)
    if type(network) is MLP:
        layers = _of_mlp(network, params)
    elif type(network) is eqx.nn.MLP:
        layers = _of_equinox(network, params)
    else:
        return None
    is_array = isinstance(x, jax.Array | jax.ShapeDtypeStruct)
    if layers is None or not is_array or x.size != layers[0].weight.shape[-1]:
        return None
    if layers[0].activation is None:  # an affine function: nothing beyond K⁽²⁾
        return None
    if not all(_has_dtype(layer, x.dtype) for layer in layers):
        return None
    plain = all(
        layer.activation is None
        or _acts_on_each_neuron(layer.activation, _neurons(layer))
        for layer in layers
    )
    return layers if plain else None


def rated(layers: tuple[Layer, ...], rates: Params | None) -> tuple[Layer, ...] | None:
    """`layers` with the learning rates of their parameters, or `None` if a parameter
    has several."""
    if rates is None:
        return layers
    if any(rate.ndim for rate in jax.tree.leaves(rates)):
        return None
    if type(rates) is MLP:
        pairs = zip(rates.weights, rates.biases or (None,) * len(layers), strict=True)
    else:
        pairs = [(layer.weight, layer.bias) for layer in rates.layers]
    return tuple(
        Layer(
            layer.weight,
            layer.bias,
            layer.weight_rate * (1.0 if weight is None else weight),
            layer.bias_rate * (1.0 if bias is None else bias),
            layer.activation,
        )
        for layer, (weight, bias) in zip(layers, pairs, strict=True)
    )


def _of_mlp(network: MLP, params: Any) -> tuple[Layer, ...]:
    count = len(network.weights)
    biases: Any = network.biases or (None,) * count
    trained = params.biases or (None,) * count
    layers = []
    for i, (weight, bias, activation) in enumerate(network.scales):
        layers.append(
            Layer(
                weight * network.weights[i],
                None if biases[i] is None else bias * biases[i],
                0.0 if params.weights[i] is None else weight**2,
                0.0 if trained[i] is None else bias**2,
                _Scaled(network.activation, activation) if i < count - 1 else None,
            )
        )
    return tuple(layers)


def _of_equinox(network: eqx.nn.MLP, params: Any) -> tuple[Layer, ...] | None:
    functions = (network.activation, network.final_activation)
    learned = any(eqx.is_array(leaf) for leaf in jax.tree.leaves(functions))
    plain = all(type(layer) is eqx.nn.Linear for layer in network.layers)
    if learned or not plain or network.scan or network.depth == 0:
        return None
    activations = [_Mapped(functions[0])] * (len(network.layers) - 1)
    activations.append(_Mapped(functions[1]))
    layers = [
        Layer(
            layer.weight,
            layer.bias,
            0.0 if trained.weight is None else 1.0,
            0.0 if trained.bias is None else 1.0,
            activation,
        )
        for layer, trained, activation in zip(
            network.layers, params.layers, activations, strict=True
        )
    ]
    return _without_last_identity(layers)


def _without_last_identity(layers: list[Layer]) -> tuple[Layer, ...]:
    *lower, last = layers
    assert last.activation is not None
    traced = jax.make_jaxpr(last.activation)(_neurons(last)).jaxpr
    if traced.outvars == traced.invars:
        last = Layer(last.weight, last.bias, last.weight_rate, last.bias_rate, None)
    return (*lower, last)


def _has_dtype(layer: Layer, dtype: Any) -> bool:
    """Whether W is a matrix and b a vector, both of `dtype`."""
    arrays = [array for array in (layer.weight, layer.bias) if array is not None]
    shapes = [layer.weight.shape, layer.weight.shape[:1]]
    fits = [array.shape for array in arrays] == shapes[: len(arrays)]
    return fits and all(array.dtype == dtype for array in arrays)


@lru_cache(maxsize=256)
def _acts_on_each_neuron(
    function: Callable[[Array], Array], z: jax.ShapeDtypeStruct
) -> bool:
    """Checked in the jaxpr of σ‴ along a direction, which contains σ, σ′, σ″ and any
    `custom_jvp`."""
    try:
        traced = jax.make_jaxpr(_slope(_slope(_slope(lambda z, _: function(z)))))(z, z)
    except Exception:  # the generic algorithm raises a clearer error
        return False
    keeps_shape = [aval.shape for aval in traced.out_avals] == [z.shape]
    return keeps_shape and all(_is_elementwise(eqn) for eqn in traced.jaxpr.eqns)


def _slope(curve: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    def slope(z: Array, direction: Array) -> Array:
        return jax.jvp(lambda z: curve(z, direction), (z,), (direction,))[1]

    return slope


def _neurons(layer: Layer) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(layer.weight.shape[:1], layer.weight.dtype)


def _is_elementwise(equation: Any) -> bool:
    name = equation.primitive.name
    if name == "broadcast_in_dim":
        # Of a constant: none of the accepted equations maps a vector to a scalar.
        return equation.invars[0].aval.shape == ()
    parts = [part for part in equation.params.values() if hasattr(part, "eqns")]
    inner = [_is_elementwise(inner) for part in parts for inner in part.eqns]
    return name in _ELEMENTWISE and all(inner)
