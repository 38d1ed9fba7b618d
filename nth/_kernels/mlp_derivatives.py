"""Forward and backward passes through a chain of layers, and their derivatives.

For a layer z = W x + b let x_a be its inputs for slot a and λ_a = ∂f_a/∂z: the gradient
∂f_a/∂W is λ_a x_aᵀ. Along ∇f_c the layer's weight changes by λ_c x_cᵀ, of rank one, so
the derivatives of x_a and λ_a for all pairs (a, c) take one forward and one backward
pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._network.dense_layers import Layer

# An array of the shape in the comment; None where it would be 0 or σ is the identity.
Part: TypeAlias = Any


class At(NamedTuple):
    """The values of one layer at each of a set of slots; B = ∂f/∂σ(z)."""

    inputs: Float[Array, "slots fan_in"]  # x
    deltas: Float[Array, "slots fan_out"]  # λ = ∂f/∂z = σ′ B
    slope: Part  # slots fan_out: σ′
    curvature: Part  # slots fan_out: σ″
    curvature_cotangent: Part  # slots fan_out: σ″ B
    third_cotangent: Part  # slots fan_out: σ‴ B


class Change(NamedTuple):
    """Derivatives of one layer's values at each of a set of rows, along each ∇f_c."""

    inputs: Part  # rows slots fan_in: ẋ
    z: Part  # rows slots fan_out: ż
    deltas: Part  # rows slots fan_out: λ̇
    third_order: Part  # rows slots fan_out: σ″ Ḃ + σ‴ B ż / 3


Slots = Sequence[At]
Changes = Sequence[Change]


def derivatives(function: Callable[[Array], Array] | None, z: Array) -> list[Array]:
    """σ, σ′, σ″, σ‴ at each neuron, for elementwise σ."""
    if function is None:
        return [z]
    functions = [function]
    for _ in range(3):
        functions.append(_slope(functions[-1]))
    return [jax.vmap(function)(z) for function in functions]


def _slope(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda z: jax.jvp(function, (z,), (jnp.ones_like(z),))[1]


def forward(
    layers: Sequence[Layer], x: Shaped[Array, "points *in"]
) -> list[Float[Array, "points fan_in"]]:
    """The inputs of each layer at every point of `x`."""
    inputs = [x.reshape(len(x), layers[0].weight.shape[1])]
    for layer in layers[:-1]:
        assert layer.activation is not None
        inputs.append(jax.vmap(layer.activation)(_affine(layer, inputs[-1])))
    return inputs


def _affine(layer: Layer, inputs: Float[Array, "points fan_in"]) -> Array:
    z = inputs @ layer.weight.T
    return z if layer.bias is None else z + layer.bias[None]


def at_slots(
    layers: Sequence[Layer], x: Shaped[Array, "points *in"], size: int
) -> Slots:
    """The layers at each slot of `x`, for a network with `size` outputs per point."""

    def of_slots(array: Float[Array, "points k"]) -> Float[Array, "slots k"]:
        return array if size == 1 else jnp.repeat(array, size, axis=0)

    forward_values = []
    for layer, inputs in zip(layers, forward(layers, x), strict=True):
        values = derivatives(layer.activation, _affine(layer, inputs))
        forward_values.append([of_slots(array) for array in (inputs, *values[1:])])
    cotangent = jnp.tile(jnp.eye(size, dtype=layers[0].weight.dtype), (len(x), 1))
    layer_values = []
    for layer, (inputs, *values) in zip(
        layers[::-1], forward_values[::-1], strict=True
    ):
        if layer.activation is None:
            layer_values.append(At(inputs, cotangent, None, None, None, None))
        else:
            slope, curvature, third = values
            at = At(
                inputs,
                slope * cotangent,
                slope,
                curvature,
                curvature * cotangent,
                third * cotangent,
            )
            layer_values.append(at)
        cotangent = layer_values[-1].deltas @ layer.weight
    return layer_values[::-1]


def pairs(
    layer: Layer, rows: At, others: At
) -> tuple[Float[Array, "rows others"], Float[Array, "rows others"]]:
    """P and Q of one layer."""
    p = rows.deltas @ others.deltas.T
    return p, layer.weight_rate * (rows.inputs @ others.inputs.T) + layer.bias_rate


def changes(layers: Sequence[Layer], rows: Slots, along: Slots) -> Changes:
    """ẋ and λ̇ of `rows` along ∇f_c for c in `along`; its part for W is s λ_c x_cᵀ."""
    forward_changes: list[tuple[Part, Part]] = []
    moved: Part = None
    products = [pairs(*each) for each in zip(layers, rows, along, strict=True)]
    for layer, row, c, (_, q) in zip(layers, rows, along, products, strict=True):
        inputs, z = moved, None
        if row.slope is not None:
            z = q[:, :, None] * c.deltas[None]
            z = z if inputs is None else z + inputs @ layer.weight.T
            moved = row.slope[:, None] * z
        forward_changes.append((inputs, z))
    layer_changes: list[Change] = []
    change: Part = None  # Ḃ
    for layer, row, c, (p, _), (inputs, z) in zip(
        *(part[::-1] for part in (layers, rows, along, products, forward_changes)),
        strict=True,
    ):
        deltas, third_order = change, None
        if z is not None:
            deltas = row.curvature_cotangent[:, None] * z
            third_order = row.third_cotangent[:, None] * z / 3
            if change is not None:
                deltas = deltas + row.slope[:, None] * change
                third_order = third_order + row.curvature[:, None] * change
        layer_changes.append(Change(inputs, z, deltas, third_order))
        change = layer.weight_rate * p[:, :, None] * c.inputs[None]
        change = change if deltas is None else change + deltas @ layer.weight
    return layer_changes[::-1]
