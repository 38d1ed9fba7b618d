"""Stability of linearized training by a linear optimizer.

Where an optimizer treats all parameters alike, linearized training along an eigenvector
of the curvature, of eigenvalue κ, is the optimizer's own recursion for one parameter
whose gradient is κθ. That is a small matrix on the parameter and its buffers, stable if
its spectral radius is at most 1.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar
from .._dynamics.gradient_flow import GradientFlow
from .._internal.validation import is_traced
from .._internal.warnings import call_with_values, warn
from .._network.base import TrainableNetwork
from .._problem.inputs import take
from .curvature import largest_curvature
from .optimizer import TracedOptimizer, traced
from .plan import Plan

# Lanczos iterations for the warning: they bound κ from below.
_ITERATIONS = 8
_TOLERANCE = 1e-2

# The spectral radius is that of the power 2^40 of a matrix, to rounding.
_SQUARINGS = 40

# What exceeds 1 by less than this may be rounding in float32, and takes a thousand
# steps to grow.
_MARGIN = 1e-3


class Recursion(NamedTuple):
    """A step for one parameter: the update, and the new buffers, as linear functions of
    its gradient, its buffers and itself."""

    gradient: Float[Array, " r"]
    buffers: Float[Array, "r b"]
    parameter: Float[Array, " r"]

    def matrix(self, kappa: Scalar, factor: Scalar) -> Float[Array, "r r"]:
        """The map of (parameter, buffers): gradient κθ, and updates times `factor`."""
        first = (self.parameter + kappa * self.gradient)[:, None]
        matrix = jnp.concatenate([first, self.buffers], axis=1)
        return matrix.at[0].multiply(factor).at[0, 0].add(1)


def spectral_radius(matrix: Float[Array, "r r"]) -> Scalar:
    """‖A^N‖^(1/N) by repeated squaring: JAX has eigenvalues of matrices that are not
    symmetric on CPUs alone."""

    def square(carry: Any, _: None) -> Any:
        matrix, logarithm, weight = carry
        size = jnp.linalg.norm(matrix)
        safe = jnp.where(size > 0, size, 1)
        matrix = matrix / safe
        return (matrix @ matrix, logarithm + weight * jnp.log(safe), weight / 2), size

    zero, one = jnp.zeros((), matrix.dtype), jnp.ones((), matrix.dtype)
    carry, sizes = jax.lax.scan(square, (matrix, zero, one), None, _SQUARINGS)
    return jnp.where(jnp.all(sizes > 0), jnp.exp(carry[1]), 0)


def for_one_parameter(
    optimizer: Any, whole: TracedOptimizer, dtype: Any
) -> TracedOptimizer | None:
    """`optimizer` of one parameter; `None` unless it is linear, and treats all the
    parameters of `whole` like that one."""
    if not whole.linear:
        return None
    try:
        single = traced(optimizer, jnp.ones((), dtype))
    except ValueError:  # it is made for the parameters of this network
        return None
    return single if single.linear and _treats_alike(single, whole) else None


def _treats_alike(single: TracedOptimizer, whole: TracedOptimizer) -> bool:
    """Whether the first update from unit gradients, and from unit parameters, is that
    of the one parameter."""
    for of_gradients in (1, 0):
        one = _first_update(single, of_gradients)[0]
        every = _first_update(whole, of_gradients)
        if is_traced(one, every):
            continue
        if not all(bool(jnp.all(jnp.isclose(update, one))) for update in every):
            return False
    return True


def _first_update(optimizer: TracedOptimizer, of_gradients: int) -> list[Array]:
    """The update from gradients that are all 1 and parameters 0, or the reverse."""
    count = len(optimizer.shapes)
    gradients = [jnp.full(s.shape, of_gradients, s.dtype) for s in optimizer.shapes]
    params = [jnp.full(s.shape, 1 - of_gradients, s.dtype) for s in optimizer.shapes]
    state = [
        jnp.zeros_like(leaf) if form.varies else leaf
        for leaf, form in zip(optimizer.start, optimizer.forms, strict=True)
    ]
    updates: Any = optimizer(gradients, state, params).updates
    return updates[:count]


def recursion(single: TracedOptimizer, state: list[Array]) -> Recursion:
    """The step of an optimizer of one parameter, whose state is `state`."""
    buffers = [index for index, form in enumerate(single.forms) if form.varies]
    dtype = single.shapes[0].dtype

    def step(vector: Array) -> Array:
        own = list(state)
        for index, value in zip(buffers, vector[1:-1], strict=True):
            own[index] = value.astype(state[index].dtype)
        updates, after = single([vector[0]], own, [vector[-1]])
        outputs: list[Any] = [updates[0], *[after[index] for index in buffers]]
        return jnp.stack([output.astype(dtype) for output in outputs])

    jacobian = jax.jacfwd(step)(jnp.zeros(2 + len(buffers), dtype))
    return Recursion(jacobian[:, 0], jacobian[:, 1:-1], jacobian[:, -1])


def warn_of_instability(
    network: TrainableNetwork, planned: Plan, optimizer: Any, whole: TracedOptimizer
) -> None:
    """Warn if at some step linearized training on the first batch is unstable."""
    single = for_one_parameter(optimizer, whole, network.dtype)
    if single is None or planned.number == 0:
        return
    flow = GradientFlow(network, network.problem)
    rows = slice(None) if planned.rows is None else planned.rows[0]
    x, y = take(network.problem.x_train, rows), network.problem.y_train[rows]
    kappa = largest_curvature(
        flow, x, y, _TOLERANCE, _ITERATIONS, jax.lax.stop_gradient
    )
    radius = _largest_radius(single, kappa, planned.number)
    call_with_values(_warn_of_radius, -radius, radius, kappa)


@eqx.filter_jit
def _largest_radius(single: TracedOptimizer, kappa: Scalar, number: int) -> Scalar:
    """The largest spectral radius of a step; with schedules it varies."""
    one = jnp.ones((), kappa.dtype)

    def step(carry: Any, _: None) -> Any:
        state, largest = carry
        matrix = recursion(single, state).matrix(kappa, one)
        state = single([one * 0], state, [one * 0]).state
        return (state, jnp.maximum(largest, spectral_radius(matrix))), None

    carry = (list(single.start), jnp.zeros_like(one))
    return jax.lax.stop_gradient(jax.lax.scan(step, carry, None, number)[0][1])


def _warn_of_radius(note: str, _: Any, radius: Any, kappa: Any) -> None:
    if radius > 1 + _MARGIN:
        warn(
            "optimizer: its learning rate is beyond the critical one at "
            f"initialization. Along the largest curvature of the loss, {kappa:.4g}, "
            f"linearized training grows {radius:.4g}-fold in a step, and no truncation "
            f"follows the network through it; see nth.max_learning_rate.{note}"
        )
