"""The fastest rate of the linearized dynamics at t = 0, for the choice of a solver."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._custom_types import Inputs, Params, Scalar
from .._kernels.jacobian import tangent_maps
from .._network.base import OutputFunction
from .._network.learning_rates import by_rates
from .._problem.inputs import take
from .._problem.losses import AbstractLoss
from .._problem.problem import Problem
from .base import AbstractDynamics, AbstractKernelDynamics
from .parameter_dynamics import AbstractDescent
from .taylorized import TaylorizedFlow

# Power iterations, from the residual, which lies mostly along leading eigenvectors: the
# estimate is within some tens of percent, enough to choose a solver.
_ITERATIONS = 6

# Training points that are used: the largest eigenvalue of K/n depends little on n.
_MOST_POINTS = 256


def fastest_rate(dynamics: AbstractDynamics) -> Scalar | None:
    """A lower estimate of ρ, the largest eigenvalue of K̃⁽²⁾ ∂²L/∂f² at t = 0.

    Small perturbations of the outputs decay as e^{−ρt} or more slowly. `None` for
    dynamics that have no kernel.
    """
    if isinstance(dynamics, AbstractDescent | TaylorizedFlow):
        network = (dynamics.apply, dynamics.params, dynamics.rates)
        rate = rate_of_network(*network, dynamics.problem)
        decay = dynamics.weight_decay if isinstance(dynamics, AbstractDescent) else None
        return rate if decay is None else rate + decay
    if isinstance(dynamics, AbstractKernelDynamics):
        return _of_kernel(dynamics)
    return None


def rate_of_network(
    apply: OutputFunction, params: Params, rates: Params | None, problem: Problem
) -> Scalar:
    """The same for a network at θ₀, by products with J M Jᵀ."""
    points = slice(None, None, -(-problem.n_train // _MOST_POINTS))
    x, y = take(problem.x_train, points), problem.y_train[points]
    return _of_network(apply, params, rates, problem.loss, x, y)


@eqx.filter_jit
def _of_network(
    apply: OutputFunction,
    params: Params,
    rates: Params | None,
    loss: AbstractLoss,
    x: Inputs,
    y: Shaped[Array, "b ..."],
) -> Scalar:
    outputs, pull, push = tangent_maps(apply, params, x)

    def product(vector: Float[Array, "b *out"]) -> Float[Array, "b *out"]:
        return push(by_rates(rates, pull(vector)))

    return _power_iteration(product, loss, outputs, y)


@eqx.filter_jit
def _of_kernel(dynamics: AbstractKernelDynamics) -> Scalar:
    state, n = dynamics.initial_state(), dynamics.problem.n_train

    def product(vector: Float[Array, "n *out"]) -> Float[Array, "n *out"]:
        return dynamics.ntk_product(state, vector)[:n]

    problem, outputs = dynamics.problem, dynamics.outputs(state)[:n]
    return _power_iteration(product, problem.loss, outputs, problem.y_train)


def _power_iteration(
    product: Callable[[Array], Array],
    loss: AbstractLoss,
    outputs: Float[Array, "b *out"],
    y: Shaped[Array, "b ..."],
) -> Scalar:
    """The growth of a vector under v ↦ ∂²L/∂f² K v."""

    def gradient(outputs: Array) -> Array:
        return loss.gradient(outputs, y)

    def iterate(carry: tuple[Array, Scalar], _: None) -> Any:
        vector = carry[0]
        new = jax.jvp(gradient, (outputs,), (product(vector),))[1]
        size = jnp.linalg.norm(new.ravel())
        return (new / jnp.where(size > 0, size, 1), size), None

    start = gradient(outputs)
    size = jnp.linalg.norm(start.ravel())
    start = start / jnp.where(size > 0, size, 1)
    zero = jnp.zeros_like(size)
    return jax.lax.scan(iterate, (start, zero), None, length=_ITERATIONS)[0][1]
