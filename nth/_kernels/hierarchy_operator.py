"""The operator D, which maps each kernel to the next.

For T a function of θ and β a training slot (a point, and one of its outputs),

    (D T)(θ)[…, β] = ⟨∇T(θ)[…], M ∇f_β(θ)⟩,      K⁽¹⁾ = f,   K⁽ʳ⁺¹⁾ = D K⁽ʳ⁾,

with M the diagonal matrix of learning rates, 1 by default.

It is a derivative of T along M ∇f_β, one `jvp`. Since ∇f_β is itself a function of θ, a
further D differentiates it too.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs, Params
from .._internal.jaxpr import primitives
from .._network.base import OutputFunction
from .._network.learning_rates import by_rates
from .._problem.inputs import take

# The message for a network that has no forward-mode derivative.
_NO_FORWARD_MODE = (
    "network has no forward-mode derivative, which {purpose} takes: {error} Define "
    "its function with jax.custom_jvp in place of jax.custom_vjp; in a diffrax solve "
    "use adjoint=diffrax.DirectAdjoint(). (nth.kernels at order 2, "
    "nth.gradient_flow and nth.max_learning_rate take reverse mode alone.)"
)

TensorFunction = Callable[[Params], Float[Array, "..."]]
SlotGradient = Callable[[Params, Int[Array, ""]], Params]


def require_forward_mode(
    apply: OutputFunction, params: Params, x: Inputs, purpose: str
) -> None:
    """Raise `ValueError` if the network at one point cannot be differentiated by
    `jax.jvp`, as `purpose` takes."""

    def outputs(params: Params) -> Float[Array, "*out"]:
        return apply(params, take(x, 0))

    def slope(params: Params) -> Float[Array, "*out"]:
        return jax.jvp(outputs, (params,), (params,))[1]

    names = primitives(jax.make_jaxpr(outputs)(params))
    if not any(name.startswith("custom_vjp") for name in names):
        return
    try:  # second derivatives: a first one fails only when it is compiled
        jax.eval_shape(lambda p: jax.jvp(slope, (p,), (p,)), params)
    except Exception as error:  # a network may raise anything
        message = str(error).strip().partition("\n")[0]
        raise ValueError(
            _NO_FORWARD_MODE.format(purpose=purpose, error=message)
        ) from error


def slot_gradient(
    apply: OutputFunction, x_train: Inputs, rates: Params | None = None
) -> SlotGradient:
    """(θ, β) ↦ M ∇f_β(θ), with slots numbered in row order of `(n, *out)`."""

    def gradient(params: Params, slot: Int[Array, ""]) -> Params:
        def f_slot(params: Params) -> Float[Array, ""]:
            size = apply.output.size
            output = apply(params, take(x_train, slot // size))
            return output.reshape(size)[slot % size]

        return by_rates(rates, jax.grad(f_slot)(params))

    return gradient


def along(
    tensor: TensorFunction, gradient: SlotGradient, params: Params, slot: Int[Array, ""]
) -> Float[Array, "..."]:
    """(D T)(θ)[…, β] for one slot β: the derivative of T along ∇f_β(θ)."""
    return jax.jvp(tensor, (params,), (gradient(params, slot),))[1]


def along_jacobian(
    tensor: TensorFunction,
    apply: OutputFunction,
    x_train: Inputs,
    vector: Float[Array, "n *out"],
    rates: Params | None = None,
) -> TensorFunction:
    """D T with its new slot contracted with a vector v: the derivative along M Jᵀv."""

    def summed(params: Params) -> Float[Array, ""]:
        return jnp.vdot(vector, apply.over(params, x_train))

    def lifted(params: Params) -> Float[Array, "..."]:
        direction = by_rates(rates, jax.grad(summed)(params))
        return jax.jvp(tensor, (params,), (direction,))[1]

    return lifted


def lift(
    tensor: TensorFunction, gradient: SlotGradient, n_slots: int, block: int
) -> TensorFunction:
    """D T, with the new slot as its last axis, computed `block` slots at a time."""

    def lifted(params: Params) -> Float[Array, "..."]:
        slots = jnp.arange(n_slots)
        column = partial(along, tensor, gradient, params)
        if block >= n_slots:
            return jax.vmap(column, out_axes=-1)(slots)
        return jnp.moveaxis(jax.lax.map(column, slots, batch_size=block), 0, -1)

    return lifted
