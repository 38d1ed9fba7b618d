"""Laziness of training, and the change of the kernel during training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._analytic.closed_form import require_squared_error
from .._custom_types import Inputs, Params, Scalar
from .._integrate.kernel_trajectory import KernelPath
from .._internal.precision import full_precision
from .._internal.validation import require, require_instance, require_integer
from .._kernels.assembly import form
from .._kernels.evaluation import points_of
from .._kernels.hierarchy_operator import require_forward_mode
from .._network.base import OutputFunction, trainable
from .._network.finiteness import require_finite_result
from .._network.learning_rates import with_unit_rates
from .._problem.problem import Problem

# All starts are iterated together, each with two vectors of the size of the parameters.
_MOST_STARTS = 1000


@full_precision
def laziness(
    network: Callable[..., Any],
    problem: Problem,
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    starts: int = 4,
    max_steps: int = 500,
) -> Scalar:
    """The measure of lazy training (Chizat et al. 2019, eq. 2),

        κ(θ₀) = ‖f(θ₀) − y‖ ‖D²f(θ₀)‖/‖Df(θ₀)‖²,

    with f the vector of training outputs: the relative change of Df until the data are
    fitted. Training is lazy, that is close to level 2, if κ ≪ 1; κ decreases with the
    width m as m^{−1/2}, up to a logarithm.

    Norms are operator norms: ‖Df‖² is the NTK's largest eigenvalue, and ‖D²f‖ the
    largest ‖D²f[u, v]‖ over unit u and v. The latter is computed by alternating
    maximization with Hessian-vector products, from several random starts; each
    converges to a local maximum, so the result is a **lower bound** of κ. It is exact
    for a single training output.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][];
        the loss must be the squared error. With learning rates M, Df and D²f are
        derivatives along √M δ.
    - `starts`: the number of random starts, up to 1,000; the largest result is used.
    - `max_steps`: the largest number of iterations, if they do not converge earlier.

    **Returns:** κ, a scalar. Its first derivatives are those of the maximum found;
    higher ones omit the change of u and v.

    **Raises:** `ValueError` for another loss or invalid input.
    """
    starts = require_integer("starts", starts, 1, _MOST_STARTS)
    max_steps = require_integer("max_steps", max_steps, 1)
    cure = "Give nth.Problem(x_train, y_train), which has this loss."
    require_squared_error(problem, "laziness", cure)
    points = points_of(trainable(network, problem, filter_spec, learning_rates))
    require_forward_mode(points.apply, points.params, points.x_train, "laziness")
    ntk = form(points.on_train, 2, None, progress=False)[1]
    largest = jnp.linalg.eigvalsh(ntk.reshape(points.n_slots, -1))[-1]
    outputs = points.apply.over(points.params, points.x_train)
    distance = jnp.linalg.norm((outputs - problem.y_train).ravel())
    parts = (points.apply, points.params, points.rates, points.x_train)
    curvature = _curvature(*parts, starts, max_steps)
    measure = distance * curvature / largest
    at = (points.apply, points.params, points.x_train, points.n_train)
    require_finite_result("laziness", measure, *at)
    return measure


@eqx.filter_jit
def _curvature(
    apply: OutputFunction,
    params: Params,
    rates: Params | None,
    x: Inputs,
    starts: int,
    max_steps: int,
) -> Scalar:
    """max ‖D²f[u, v]‖ over unit u, v, by alternating between w, u and v in
    ⟨w, D²f[u, v]⟩, which no step can decrease.

    At a maximum the derivative in θ is that at fixed u, v and w, so no derivative goes
    through the loop.
    """
    start, parameters = with_unit_rates(params, rates)
    theta, unravel = ravel_pytree(start)

    def outputs(theta: Array) -> Array:
        return apply.over(parameters(unravel(theta)), x).ravel()

    second = _SecondDerivative(outputs, theta)
    tolerance = 10 * jnp.finfo(theta.dtype).eps

    def from_start(key: Array) -> Scalar:
        # Without stop_gradient reverse mode would not support the loop.
        def iterate(carry: Any) -> Any:
            step, u, v, now, _ = carry
            w, _ = _unit(second(u, v))
            u, _ = _unit(second.transposed(w, v))
            v, value = _unit(second.transposed(w, u))
            return jax.lax.stop_gradient((step + 1, u, v, value, now))

        def not_converged(carry: Any) -> Array:
            step, _, _, now, before = carry
            return (step < max_steps) & (jnp.abs(now - before) > tolerance * now)

        u, v = jax.random.normal(key, (2, theta.size), theta.dtype)
        first = jnp.ones((), theta.dtype)
        carry = (0, _unit(u)[0], _unit(v)[0], first, 0 * first)
        _, u, v, *_ = jax.lax.while_loop(not_converged, iterate, carry)
        curved = second(u, v)
        return jnp.vdot(jax.lax.stop_gradient(_unit(curved)[0]), curved)

    return jnp.max(jax.vmap(from_start)(jax.random.split(jax.random.key(0), starts)))


class _SecondDerivative(NamedTuple):
    """D²f at θ, as a symmetric map of two vectors."""

    outputs: Callable[[Array], Array]
    theta: Array

    def __call__(self, u: Array, v: Array) -> Array:
        """D²f[u, v]."""

        def slope(theta: Array) -> Array:
            return jax.jvp(self.outputs, (theta,), (u,))[1]

        return jax.jvp(slope, (self.theta,), (v,))[1]

    def transposed(self, w: Array, v: Array) -> Array:
        """The vector of which the inner product with u is ⟨w, D²f[u, v]⟩."""
        gradient = jax.grad(lambda theta: jnp.vdot(w, self.outputs(theta)))
        return jax.jvp(gradient, (self.theta,), (v,))[1]


def _unit(vector: Array) -> tuple[Array, Scalar]:
    norm = jnp.linalg.norm(vector)
    return jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), 0), norm


class Motion(eqx.Module):
    """The change of the kernel on the training points: see [`nth.theory.motion`][]."""

    ts: Float[Array, " T"]
    """The times."""

    change: Float[Array, " T"]
    """‖K(t) − K(0)‖/‖K(0)‖, Frobenius norms."""

    distance: Float[Array, " T"]
    """1 − ⟨K(0), K(t)⟩/(‖K(0)‖ ‖K(t)‖): a change of direction only (Fort et
    al. 2020)."""

    alignment: Float[Array, " T"]
    """⟨K(t), y yᵀ⟩/(‖K(t)‖ ‖y‖²), alignment with targets (Cristianini et al. 2001)."""

    effective_rank: Float[Array, " T"]
    """exp(−Σ p_i ln p_i), with p_i the singular values of K(t) over their sum (Roy &
    Vetterli 2007); between 1 and n·C."""


@full_precision
def motion(path: KernelPath, problem: Problem) -> Motion:
    """The change of the kernel along a solution: with K(t) = K̃⁽²⁾ on the training
    points, ‖K(t) − K(0)‖/‖K(0)‖, the angle between K(0) and K(t), the alignment of K(t)
    with y yᵀ, and the effective rank of K(t); references in [`nth.theory.Motion`][].

    For a hierarchy this is the predicted motion, for [`nth.GradientFlow`][] the actual
    one.

    **Arguments:**

    - `path`: the result of [`nth.kernel_along`][].
    - `problem`: the problem solved, with targets of the shape of the outputs.

    **Returns:** [`nth.theory.Motion`][].

    **Raises:** `ValueError` if the targets have another shape.
    """
    require_instance("path", path, KernelPath, "nth.kernel_along(dynamics, ts)")
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    y = problem.y_train
    if y.shape != path.solution.train.shape[1:]:
        raise ValueError(
            f"problem has targets of shape {y.shape}, and the outputs of path have "
            f"{path.solution.train.shape[1:]}: alignment needs one target per slot."
        )
    message = "problem has targets that are all 0: the kernel has no alignment with 0."
    y = require(y, jnp.any(y != 0), message)
    start, kernels = path.on_train()
    return Motion(path.ts, *_measures(start, kernels, y.reshape(-1)))


@eqx.filter_jit
def _measures(
    start: Float[Array, "s s"], kernels: Float[Array, "T s s"], y: Float[Array, " s"]
) -> tuple[Array, Array, Array, Array]:
    size = jnp.linalg.norm(start)

    def measures_at(
        kernel: Float[Array, "s s"],
    ) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        norm = jnp.linalg.norm(kernel)
        # From the difference of unit matrices, because 1 − cos loses half the digits.
        apart = jnp.sum((kernel / norm - start / size) ** 2) / 2
        aligned = y @ kernel @ y / (norm * jnp.vdot(y, y))
        share = jnp.linalg.svd(kernel, compute_uv=False)
        share = share / jnp.sum(share)
        logs = jnp.log(jnp.where(share > 0, share, 1))
        rank = jnp.exp(-jnp.sum(share * logs))
        return jnp.linalg.norm(kernel - start) / size, apart, aligned, rank

    return jax.vmap(measures_at)(kernels)
