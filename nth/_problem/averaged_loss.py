"""A loss with kinks, made continuously differentiable over a small window."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import Scalar
from .losses import AbstractLoss


class AveragedLoss(AbstractLoss):
    """`loss`, with its gradient in each output averaged over a window:

        ∂ℓ/∂f → 1/(2ε) ∫_{f−ε}^{f+ε} ∂ℓ/∂f df = (ℓ(f + ε) − ℓ(f − ε))/(2ε).

    Where the gradient flow of the loss slides along a kink, as that of |f − y| does
    once it is at f = y, the flow of the averaged loss comes to rest within ε of it, as
    Filippov's solution does (Filippov 1988, *Differential Equations with Discontinuous
    Righthand Sides*). The price is stiffness, of rate 1/ε. Elsewhere the gradient of a
    smooth loss changes by O(ε²), and that of a piecewise linear loss not at all.

    The value of the loss stays that of `loss`.
    """

    loss: AbstractLoss
    width: float = eqx.field(static=True, default=5e-4)
    """ε, in units of the outputs."""

    def pointwise(self, output, target):
        return _value(self.loss, output, target, self.width)

    def check_targets(self, targets, dtype):
        return self.loss.check_targets(targets, dtype)

    def check_outputs(self, targets, output):
        return self.loss.check_outputs(targets, output)


@eqx.filter_custom_jvp
def _value(loss: AbstractLoss, output: Array, target: Array, width: float) -> Scalar:
    return loss.pointwise(output, target)


@_value.def_jvp
def _value_jvp(primals: Any, tangents: Any) -> tuple[Scalar, Scalar]:
    loss, output, target, width = primals
    value = loss.pointwise(output, target)
    if tangents[1] is None:
        return value, jnp.zeros_like(value)

    def quotient(unit: Array) -> Array:
        above = loss.pointwise(output + width * unit, target)
        return (above - loss.pointwise(output - width * unit, target)) / (2 * width)

    units = jnp.eye(output.size, dtype=output.dtype).reshape(-1, *output.shape)
    slope = jax.vmap(quotient)(units).reshape(output.shape)
    return value, jnp.vdot(slope, tangents[1])
