"""The kernel, and the sharpness of the loss, along training in steps."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._custom_types import Params, Scalar
from .._dynamics.base import AbstractKernelDynamics
from .._dynamics.gradient_flow import GradientFlow
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._integrate.kernel_trajectory import (
    KernelPath,
    SaveNTK,
    require_kernel_memory,
)
from .._internal.precision import full_precision
from .._internal.validation import require_order
from .._network.base import trainable
from .._network.learning_rates import by_rates
from .._problem.problem import Problem
from .._solution.solution import Solution
from .curvature import largest_eigenvalue
from .solve import solve_discrete, train

# Lanczos iterations for a sharpness, and the relative residual at which it ends.
_ITERATIONS = 64
_TOLERANCE = 1e-4


class SharpnessPath(eqx.Module):
    """The sharpness of the loss at each step: see [`nth.sharpness_along`][]."""

    sharpness: Float[Array, " T"]
    """The largest eigenvalue of √M ∇²L √M at each of `solution.ts`."""

    solution: Solution
    """The trained network."""

    @property
    def ts(self) -> Int[Array, " T"]:
        """The requested steps."""
        return self.solution.ts


@full_precision
def sharpness_along(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    optimizer: Any,
    *,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    batches: Any = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> SharpnessPath:
    """Train `network`, and measure the sharpness of the training loss on the way: the
    largest eigenvalue of its Hessian in the parameters, √M ∇²L √M, on all training
    points.

    Gradient descent is stable in a quadratic well of sharpness below 2/η. Above the
    critical learning rate a network that does not diverge goes through large losses
    until its sharpness is below that: the catapult of Lewkowycz et al. (2020), for any
    network, loss and number of points. At a fit the sharpness is 2 over
    [`nth.max_learning_rate`][]; elsewhere the Hessian of the network adds to it.

    **Arguments:** as for [`nth.train`][].

    **Returns:** [`nth.SharpnessPath`][]; NaN where training has diverged. Each costs as
    much as some tens of gradients on all points, by Lanczos iteration. It has no
    derivative.

    **Raises:** as [`nth.train`][].
    """
    own = trainable(network, problem, filter_spec, learning_rates)
    solution = train(
        own,
        own.problem,
        steps,
        optimizer,
        batch_size=batch_size,
        key=key,
        batches=batches,
        save_fn=_Sharpness(GradientFlow(own, own.problem)),
        progress=progress,
        checkpoint=checkpoint,
    )
    assert solution.saved is not None  # for the type checker
    return SharpnessPath(solution.saved, solution)


class _Sharpness(eqx.Module):
    """The sharpness as a `save_fn`."""

    flow: GradientFlow

    def __call__(self, step: Any, params: Params, args: Any) -> Scalar:
        flow = self.flow
        x, y = flow.problem.x_train, flow.problem.y_train
        roots = None if flow.rates is None else jax.tree.map(jnp.sqrt, flow.rates)
        vector, unravel = ravel_pytree(params)

        def gradient(params: Params) -> Params:
            return flow.gradient(params, x, y)

        def product(vector: Float[Array, " P"]) -> Float[Array, " P"]:
            direction = by_rates(roots, unravel(vector))
            curved = jax.jvp(gradient, (params,), (direction,))[1]
            return ravel_pytree(by_rates(roots, curved))[0]

        start = jax.random.normal(jax.random.key(0), vector.shape, vector.dtype)
        largest = largest_eigenvalue(product, start, _TOLERANCE, _ITERATIONS)
        return jax.lax.stop_gradient(largest)


@full_precision
def kernel_along_steps(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    optimizer: Any,
    *,
    order: int | None = None,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    batches: Any = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> KernelPath:
    """The kernel K̃⁽²⁾ along training in steps, as [`nth.kernel_along`][] has it along a
    flow: of level `order`, Σ_{k=0}^{p−2} [J(θ_ε) M J(θ_ε)ᵀ]_k; or, without an order,
    the NTK of the trained network.

    **Arguments:** as for [`nth.solve_discrete`][].

    **Returns:** [`nth.KernelPath`][], of T·m·n·C² numbers; NaN at steps without
    outputs.

    **Raises:** as [`nth.solve_discrete`][]; `ValueError` for kernels that do not fit in
    memory.
    """
    own = trainable(network, problem, filter_spec, learning_rates)
    dynamics: AbstractKernelDynamics = GradientFlow(own, own.problem)
    if order is not None:
        order = require_order("order", order)
        dynamics = MatrixFreeHierarchy(own, own.problem, order=order)
    _require_memory(dynamics, steps)
    options: Any = {
        "batch_size": batch_size,
        "key": key,
        "batches": batches,
        "save_fn": SaveNTK(dynamics),
        "progress": progress,
        "checkpoint": checkpoint,
    }
    if order is None:
        solution = train(own, own.problem, steps, optimizer, **options)
    else:
        solution = solve_discrete(
            own, own.problem, steps, optimizer, order=order, **options
        )
    assert solution.saved is not None  # for the type checker
    start = eqx.filter_jit(dynamics.ntk)(dynamics.initial_state())
    return KernelPath(start, solution.saved, solution)


def _require_memory(dynamics: AbstractKernelDynamics, steps: Any) -> None:
    """Raise `ValueError` if the kernels at all steps would not fit in memory."""
    try:
        count = int(steps) + 1 if np.ndim(steps) == 0 else np.size(steps)
    except (TypeError, ValueError):  # which `plan` refuses with a reason
        return
    cure = "Give fewer steps, or fewer points."
    require_kernel_memory("steps", dynamics, (count + 1, "steps"), cure)
