"""The largest learning rate that linear stability allows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._custom_types import Scalar
from .._dynamics.gradient_flow import GradientFlow
from .._internal.derivatives import refusing_derivatives
from .._internal.precision import full_precision
from .._internal.validation import require
from .._network.base import trainable
from .._problem.problem import Problem
from .curvature import largest_curvature
from .optimizer import traced
from .stability import Recursion, for_one_parameter, recursion, spectral_radius

_MOST_ITERATIONS = 96

# The critical factor is searched for between these multiples of the one of plain
# gradient descent, in steps of this ratio, and then by bisection.
_LEAST, _MOST, _SEARCHED = 1e-4, 1e4, 400
_BISECTIONS = 50

_without_derivative = refusing_derivatives(
    "nth.max_learning_rate has no derivative, as it is found by iteration. Where it is "
    "used as a constant, give it jax.lax.stop_gradient of what it is computed from."
)


@full_precision
def max_learning_rate(
    network: Callable[..., Any],
    problem: Problem,
    optimizer: Any = None,
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Scalar:
    """The critical learning rate at initialization.

    Linearized training by gradient descent, p = 2, grows without end beyond η = 2/κ,
    with κ the largest eigenvalue of √M Jᵀ H J √M, J the Jacobian of the training
    outputs and H = ∂²L/∂f² the Hessian of the loss in them, which holds the 1/n. For
    the squared error κ = λ_max(K⁽²⁾)/n, so that η = 2n/λ_max(K⁽²⁾) (Lewkowycz et al.
    2020). κ is found by Lanczos iteration, with no kernel formed.

    With an `optimizer` it is the factor by which all its updates can be multiplied: of
    `optax.sgd(1.0, momentum=0.9)`, the critical learning rate with that momentum,
    2 (1 + μ)/κ; of an optimizer with the learning rate to be used, a number below 1
    means that it is too large. The optimizer's state is that of its first step, also
    where a schedule changes it later.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.solve`][].
    - `optimizer`: an `optax.GradientTransformation` that is linear in the gradients and
        treats all parameters alike. Others have no critical rate at initialization:
        that of Adam depends on the second moments, which follow the gradients.

    **Returns:** the rate, a scalar; ∞ where nothing curves. It has no derivative.

    **Raises:** `ValueError` for bad input.
    """
    own = trainable(network, problem, filter_spec, learning_rates)
    single = None
    if optimizer is not None:
        whole = traced(optimizer, own.params)
        single = for_one_parameter(optimizer, whole, own.dtype)
        if single is None:
            raise ValueError(
                "optimizer must be linear in the gradients and treat all parameters "
                "alike, as optax.sgd does: others have no critical learning rate at "
                "initialization. Give a rate for each layer by learning_rates."
            )
    kappa_of = _Curvature(GradientFlow(own, own.problem))
    if single is None:
        kappa = kappa_of(None)
        return jnp.where(kappa > 0, 2 / jnp.where(kappa > 0, kappa, 1), jnp.inf)
    step, decay = _with_decay_in_gradient(recursion(single, single.start))
    factor = _critical_factor(step, kappa_of(decay))
    message = (
        "optimizer: its first step must move parameters by their gradients, and be "
        "stable at small learning rates."
    )
    return require(factor, ~jnp.isnan(factor), message)


class _Curvature(eqx.Module):
    """κ with a weight decay inside the gradients."""

    flow: GradientFlow

    def __call__(self, decay: Scalar | None) -> Scalar:
        flow = self.flow
        if decay is not None:
            flow = eqx.tree_at(
                lambda flow: flow.weight_decay, flow, decay, is_leaf=lambda x: x is None
            )
        x, y = flow.problem.x_train, flow.problem.y_train
        eps = jnp.finfo(jax.tree.leaves(flow.params)[0].dtype).eps
        return largest_curvature(
            flow, x, y, float(eps**0.5), _MOST_ITERATIONS, _without_derivative
        )


def _with_decay_in_gradient(step: Recursion) -> tuple[Recursion, Scalar]:
    """The recursion without a decay λ that is added to the gradients, and λ; that is of
    the curvature then, where learning rates of parameters multiply it too."""
    decay = jnp.vdot(step.parameter, step.gradient)
    decay = decay / jnp.vdot(step.gradient, step.gradient)
    rest = step.parameter - decay * step.gradient
    rounding = jnp.finfo(rest.dtype).eps ** 0.5
    inside = jnp.linalg.norm(rest) <= rounding * jnp.linalg.norm(step.parameter)
    inside = inside & (decay > 0)
    parameter = jnp.where(inside, 0, step.parameter)
    return step._replace(parameter=parameter), jnp.where(inside, decay, 0)


@eqx.filter_jit
def _critical_factor(step: Recursion, kappa: Scalar) -> Scalar:
    """The least factor at which the recursion is unstable; NaN if every one is."""
    dtype = kappa.dtype
    gain = jnp.abs(step.gradient[0]) * kappa
    unit = 1 / jnp.where(gain > 0, gain, 1)

    def unstable(factor: Scalar) -> Array:
        radius = spectral_radius(step.matrix(kappa, factor))
        return radius > 1 + 100 * jnp.finfo(dtype).eps

    factors = unit * jnp.geomspace(_LEAST, _MOST, _SEARCHED, dtype=dtype)
    beyond = jax.vmap(unstable)(factors)
    first = jnp.argmax(beyond)

    def halve(bounds: tuple[Scalar, Scalar], _: None) -> Any:
        below, above = bounds
        middle = (below + above) / 2
        grows = unstable(middle)
        return (jnp.where(grows, below, middle), jnp.where(grows, middle, above)), None

    bounds = (factors[jnp.maximum(first - 1, 0)], factors[first])
    (below, above), _ = jax.lax.scan(halve, bounds, None, _BISECTIONS)
    found = jnp.where(jnp.any(beyond), (below + above) / 2, jnp.inf)
    found = jnp.where(beyond[0], jnp.nan, found)
    moves = step.gradient[0] != 0
    return jnp.where(kappa > 0, jnp.where(moves, found, jnp.nan), jnp.inf)
