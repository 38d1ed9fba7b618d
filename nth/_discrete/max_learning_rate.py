"""The largest learning rate that linear stability allows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Shaped

from .._custom_types import Inputs, Params, Scalar
from .._dynamics.gradient_flow import GradientFlow
from .._dynamics.parameter_dynamics import AbstractDescent
from .._internal.derivatives import refusing_derivatives
from .._internal.validation import is_traced, require, require_bool, require_scale
from .._kernels.jacobian import push_by_points
from .._network.learning_rates import by_rates, overflow_by_rates
from .._problem.problem import Problem

_MOST_ITERATIONS = 96

_NOT_FINITE = (
    "network: the curvature of the loss at initialization is NaN or infinite, so there "
    "is no critical learning rate. Check that outputs and gradients are finite at all "
    "training points."
)

Vector = Float[Array, " P"]


def max_learning_rate(
    network: Callable[..., Any],
    problem: Problem,
    *,
    momentum: Any = 0.0,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Scalar:
    """The critical learning rate of gradient descent at initialization.

    Linearized training, p = 2, grows without end beyond

        η = 2 (1 + μ)/κ,        with Nesterov's momentum 2 (1 + μ)/((1 + 2μ) κ),

    κ the largest eigenvalue of √M (Jᵀ H J + λ) √M, with J the Jacobian of the training
    outputs and H = ∂²L/∂f² the Hessian of the loss in them, which holds the 1/n. For
    the squared error, without decay, κ = λ_max(K⁽²⁾)/n, so that η = 2n/λ_max(K⁽²⁾)
    (Lewkowycz et al. 2020). κ is found by Lanczos iteration, with no kernel formed.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.solve`][].
    - `momentum`, `nesterov`, `weight_decay`: those of `optax.sgd`, and of
        `optax.add_decayed_weights` before it.

    **Returns:** the rate, a scalar; ∞ where nothing curves. It has no derivative.

    **Raises:** `ValueError` for bad input.
    """
    momentum = require_momentum(require_scale("momentum", momentum))
    require_bool("nesterov", nesterov)
    dynamics = GradientFlow(
        network,
        problem,
        filter_spec=filter_spec,
        learning_rates=learning_rates,
        weight_decay=weight_decay,
    )
    x, y = dynamics.problem.x_train, dynamics.problem.y_train
    tolerance = float(jnp.finfo(jax.tree.leaves(dynamics.params)[0].dtype).eps ** 0.5)
    return critical_rate(
        dynamics, x, y, momentum, nesterov, tolerance, _MOST_ITERATIONS
    )


_without_derivative = refusing_derivatives(
    "nth.max_learning_rate has no derivative, as it is found by iteration. Where it is "
    "used as a constant, give it jax.lax.stop_gradient of what it is computed from."
)


def critical_rate(
    dynamics: AbstractDescent,
    x: Inputs,
    y: Shaped[Array, "b ..."],
    momentum: Any,
    nesterov: bool,
    tolerance: float,
    iterations: int,
    constant: Callable[[Any], Any] = _without_derivative,
) -> Scalar:
    """The critical rate on the points `x`, `y`: at least that, where κ is not found
    to the end, for κ is approached from below.

    `constant` is the identity, and ends or refuses derivatives.
    """
    dynamics, x, y = constant((dynamics, x, y))
    options = (tolerance, iterations, constant)
    kappa = _largest_curvature(dynamics, x, y, *options, by_points=False)
    if not is_traced(kappa) and not jnp.isfinite(kappa):
        kappa = _largest_curvature(dynamics, x, y, *options, by_points=True)
    message = overflow_by_rates(dynamics.rates, 1) or _NOT_FINITE
    kappa = require(kappa, jnp.isfinite(kappa), message)
    momentum = jnp.asarray(0 if momentum is None else momentum, kappa.dtype)
    factor = 2 * (1 + momentum)
    if nesterov:
        factor = factor / (1 + 2 * momentum)
    return jnp.where(kappa > 0, factor / jnp.where(kappa > 0, kappa, 1), jnp.inf)


@eqx.filter_jit
def _largest_curvature(
    dynamics: AbstractDescent,
    x: Inputs,
    y: Shaped[Array, "b ..."],
    tolerance: float,
    iterations: int,
    constant: Callable[[Any], Any],
    *,
    by_points: bool,
) -> Scalar:
    """κ, from a start in the range of √M Jᵀ; with `by_points` J acts on one point after
    another, which is slower and finite wherever the gradients are."""
    loss = dynamics.problem.loss
    _, unravel = ravel_pytree(dynamics.params)

    def network(params: Params) -> Float[Array, "b *out"]:
        return dynamics.apply.over(params, x)

    outputs, pull = jax.vjp(network, dynamics.params)
    # The transpose of reverse mode: a function may have no forward mode (custom_vjp).
    transpose = jax.linear_transpose(pull, outputs)

    def push(direction: Params) -> Float[Array, "b *out"]:
        if by_points:
            return push_by_points(dynamics.apply, dynamics.params, x, direction)
        return transpose((direction,))[0]

    roots = None if dynamics.rates is None else jax.tree.map(jnp.sqrt, dynamics.rates)
    root = partial(by_rates, roots)  # √M

    def product(vector: Vector) -> Vector:
        direction = root(unravel(vector))
        change = push(direction)
        curved = jax.jvp(lambda f: loss.gradient(f, y), (outputs,), (change,))[1]
        (back,) = pull(curved)
        if dynamics.weight_decay is not None:
            decay = dynamics.weight_decay
            back = jax.tree.map(lambda b, d: b + decay * d, back, direction)
        # What the network closes over is none of the arguments.
        return constant(ravel_pytree(root(back))[0])

    drawn = jax.random.normal(jax.random.key(0), outputs.shape, outputs.dtype)
    start = ravel_pytree(root(pull(drawn)[0]))[0]
    return _lanczos(product, start, tolerance, iterations)


def _lanczos(
    product: Callable[[Vector], Vector],
    start: Vector,
    tolerance: float,
    iterations: int,
) -> Scalar:
    """The largest eigenvalue of a symmetric matrix, from its products.

    No vector is kept but the last two: rounding then repeats eigenvalues that were
    found, and leaves the largest as it is. Ends where the residual is below
    `tolerance` times the eigenvalue, whose own error is smaller still.
    """
    dtype = start.dtype

    def unit(vector: Vector, norm: Scalar) -> Vector:
        # A norm that is NaN or overflows is not zero: it shows in the result.
        norm = jnp.where(jnp.isfinite(norm), norm, jnp.nan)
        return jnp.where(norm == 0, 0, vector / jnp.where(norm == 0, 1, norm))

    def unfinished(carry: Any) -> Array:
        k, *_, largest, residual = carry
        return (k < iterations) & (residual > tolerance * jnp.abs(largest))

    def iterate(carry: Any) -> Any:
        k, before, now, beta, matrix, _, _ = carry
        new = product(now) - beta * before
        alpha = jnp.vdot(now, new)
        new = new - alpha * now
        norm = jnp.linalg.norm(new)
        last = jnp.maximum(k - 1, 0)
        matrix = matrix.at[k, last].set(beta).at[last, k].set(beta).at[k, k].set(alpha)
        values, vectors = jnp.linalg.eigh(matrix)
        # `eigh` of a NaN matrix may be anything: a NaN is passed on past it.
        largest = jnp.where(jnp.isfinite(norm), values[-1], jnp.nan)
        residual = norm * jnp.abs(vectors[k, -1])
        return k + 1, now, unit(new, norm), norm, matrix, largest, residual

    zero, infinite = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
    first = unit(start, jnp.linalg.norm(start))
    matrix = jnp.zeros((iterations, iterations), dtype)
    carry = (0, jnp.zeros_like(start), first, zero, matrix, zero, infinite)
    return jax.lax.while_loop(unfinished, iterate, carry)[-2]


def require_momentum(momentum: Any) -> Any:
    """`momentum`, checked to be at least 0 and below 1."""
    momentum = require_scale("momentum", momentum)
    message = "momentum must be below 1, or steps never fade"
    if is_traced(momentum):
        return require(momentum, momentum < 1, f"{message}.")
    if momentum >= 1:
        raise ValueError(f"{message}; got {momentum}.")
    return momentum
