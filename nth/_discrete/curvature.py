"""The largest curvature of the loss along the outputs, by Lanczos iteration."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Shaped

from .._custom_types import Inputs, Scalar
from .._dynamics.parameter_dynamics import AbstractDescent
from .._internal.validation import is_traced, require
from .._kernels.jacobian import push_by_points, tangent_maps
from .._network.learning_rates import by_rates, overflow_by_rates

_NOT_FINITE = (
    "network: the curvature of the loss at initialization is NaN or infinite, so there "
    "is no critical learning rate. Check that outputs and gradients are finite at all "
    "training points."
)

Vector = Float[Array, " P"]


def largest_curvature(
    dynamics: AbstractDescent,
    x: Inputs,
    y: Shaped[Array, "b ..."],
    tolerance: float,
    iterations: int,
    constant: Callable[[Any], Any],
) -> Scalar:
    """κ, the largest eigenvalue of √M (Jᵀ H J + λ) √M on the points `x`, `y`,
    approached from below.

    `constant` is the identity, and ends or refuses derivatives.
    """
    dynamics, x, y = constant((dynamics, x, y))
    options = (tolerance, iterations, constant)
    kappa = _largest_curvature(dynamics, x, y, *options, by_points=False)
    if not is_traced(kappa) and not jnp.isfinite(kappa):
        kappa = _largest_curvature(dynamics, x, y, *options, by_points=True)
    message = overflow_by_rates(dynamics.rates, 1) or _NOT_FINITE
    return require(kappa, jnp.isfinite(kappa), message)


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
    outputs, pull, push = tangent_maps(dynamics.apply, dynamics.params, x)
    if by_points:
        push = partial(push_by_points, dynamics.apply, dynamics.params, x)
    roots = None if dynamics.rates is None else jax.tree.map(jnp.sqrt, dynamics.rates)
    root = partial(by_rates, roots)  # √M

    def product(vector: Vector) -> Vector:
        direction = root(unravel(vector))
        change = push(direction)
        curved = jax.jvp(lambda f: loss.gradient(f, y), (outputs,), (change,))[1]
        back = pull(curved)
        if dynamics.weight_decay is not None:
            decay = dynamics.weight_decay
            back = jax.tree.map(lambda b, d: b + decay * d, back, direction)
        # What the network closes over is none of the arguments.
        return constant(ravel_pytree(root(back))[0])

    drawn = jax.random.normal(jax.random.key(0), outputs.shape, outputs.dtype)
    start = ravel_pytree(root(pull(drawn)))[0]
    return largest_eigenvalue(product, start, tolerance, iterations)


def largest_eigenvalue(
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
        # The rows that are not reached have eigenvalues below all others.
        bound = 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
        unused = jnp.diag(jnp.where(jnp.arange(iterations) > k, bound, 0))
        values, vectors = jnp.linalg.eigh(matrix - unused)
        # `eigh` of a NaN matrix may be anything: a NaN is passed on past it.
        largest = jnp.where(jnp.isfinite(norm), values[-1], jnp.nan)
        residual = norm * jnp.abs(vectors[k, -1])
        return k + 1, now, unit(new, norm), norm, matrix, largest, residual

    zero, infinite = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
    first = unit(start, jnp.linalg.norm(start))
    matrix = jnp.zeros((iterations, iterations), dtype)
    carry = (0, jnp.zeros_like(start), first, zero, matrix, zero, infinite)
    return jax.lax.while_loop(unfinished, iterate, carry)[-2]
