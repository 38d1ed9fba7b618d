"""Sums of branches of layers, and lists of layers."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from ._layer_moments import INPUTS, Moments, Walk
from ._layers import AbstractLayer, Conv, Dense


class Residual(AbstractLayer):
    """The sum of a branch of layers and its input, or of two branches.

    **Arguments:**

    - `layers`: the branch. Its last layer is a `Dense` or `Conv`, whose weights are
        independent of the other summand.
    - `shortcut`: layers on the input of the other summand; none by default.
    """

    layers: tuple[AbstractLayer, ...]
    shortcut: tuple[AbstractLayer, ...]

    def __init__(
        self,
        layers: Sequence[AbstractLayer],
        shortcut: Sequence[AbstractLayer] = (),
    ):
        self.layers = as_layers("layers", layers)
        self.shortcut = as_layers("shortcut", shortcut) if shortcut else ()
        if not isinstance(self.layers[-1], Dense | Conv):
            raise ValueError(
                f"layers of Residual must end in Dense or Conv, so that the summands "
                f"are independent; got {type(self.layers[-1]).__name__}."
            )

    def propagate(self, moments: Moments, walk: Walk) -> Moments:
        if moments.kind == INPUTS and not self.shortcut:
            raise ValueError(
                "layers: Residual adds the inputs to activations of another size. Put "
                "Dense() or Conv() before it, or give it a shortcut."
            )
        branch = propagate_through(self.layers, moments, walk)
        other = propagate_through(self.shortcut, moments, walk)
        if (branch.shape, branch.fan) != (other.shape, other.fan):
            raise ValueError(
                f"layers: Residual adds activations with positions {branch.shape} to "
                f"some with {other.shape}. Give it a shortcut that has the same."
            )
        versine = None
        if branch.versine is not None and other.versine is not None:
            versine = walk.versine_of_sum(
                (branch.first, other.first),
                (branch.second, other.second),
                (branch.versine, other.versine),
                len(branch.shape),
            )
        return walk.next(
            branch,
            branch.cross + other.cross,
            ntk=branch.ntk + other.ntk,
            versine=versine,
            change=jnp.maximum(branch.change, other.change),
            kind=other.kind,
        )


def propagate_through(
    layers: Sequence[AbstractLayer], moments: Moments, walk: Walk
) -> Moments:
    for layer in layers:
        moments = layer.propagate(moments, walk)
    return moments


def all_layers(layers: Sequence[AbstractLayer]) -> Iterator[AbstractLayer]:
    """Each layer, those of branches included."""
    for layer in layers:
        yield layer
        if isinstance(layer, Residual):
            yield from all_layers((*layer.layers, *layer.shortcut))


def as_layers(argument: str, layers: Any) -> tuple[AbstractLayer, ...]:
    """`layers` as a tuple; `ValueError` unless they are layers, at least one."""
    made = tuple(layers) if isinstance(layers, list | tuple) else ()
    if not made or not all(isinstance(layer, AbstractLayer) for layer in made):
        raise ValueError(
            f"{argument} must be a list of layers, such as [nth.infinite.Dense(), "
            f'nth.infinite.Activation("relu"), nth.infinite.Dense()]; got {layers!r}.'
        )
    return made
