"""Kernels of infinite width, and as kernels of a finite network."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, Float

from .._internal.validation import as_array, require_finite, require_instance
from .._network.finiteness import checked_finite
from .._network.memory import require_memory
from .._problem.losses import SoftmaxCrossEntropy
from .._problem.problem import Problem
from .kernels import Kernels

EXAMPLE = "nth.infinite.kernels(problem.x, ...)"


class InfiniteKernels(eqx.Module):
    """The kernels of [`nth.infinite.kernels`][] and [`nth.infinite.network_kernels`][],
    each of shape `(n1, n2)`.

    [`nth.closed_form`][] and [`nth.DenseHierarchy`][], for any loss, take those of all
    points of a problem in place of [`nth.Kernels`][]; [`nth.spectrum`][] and
    [`nth.theory.bounds`][] those of the training points.

    With several outputs they are the kernels of one output: two outputs are independent
    at initialization, and their mutual NTK is zero. The NTK on slots `(n1, C, n2, C)`
    is `ntk` times the identity on the outputs.
    """

    nngp: Float[Array, "n1 n2"]
    """E f(x) f(x′) over initializations: the covariance of the Gaussian process f."""

    ntk: Float[Array, "n1 n2"]
    """K⁽²⁾, the same for every initialization and constant in time."""


def as_kernels(
    kernels: InfiniteKernels, problem: Problem, *, outputs: ArrayLike | None = None
) -> Kernels:
    """The NTK of infinite width as [`nth.Kernels`][] of order 2.

    For functions that take no [`nth.infinite.InfiniteKernels`][], and for outputs at
    initialization other than 0. The NTK is constant at infinite width, so level 2 is
    exact.

    **Arguments:**

    - `kernels`: `nth.infinite.kernels(problem.x, ...)`.
    - `problem`: points and targets.
    - `outputs`: f at initialization on all points, of shape `(m,)`, or `(m, C)` for a
        network with C outputs; by default 0, of the shape of the targets. It is the
        mean over initializations, and gives the mean of trained outputs with squared
        error.

    **Returns:** [`nth.Kernels`][].

    **Raises:** `ValueError` for kernels or outputs that do not match `problem`, or that
    would not fit in memory, and for class labels without `outputs`.
    """
    ntk = matching_kernels(kernels, problem).ntk
    m, n = len(ntk), problem.n_train
    start = _zeros(problem, m, ntk.dtype) if outputs is None else outputs
    start = as_array("outputs", start)
    if start.ndim not in (1, 2) or len(start) != m or start.dtype != ntk.dtype:
        raise ValueError(
            f"outputs must have shape ({m},) or ({m}, C) and dtype {ntk.dtype}; got "
            f"{start.shape} and {start.dtype}."
        )
    start = require_finite("outputs", start)
    if start.ndim == 1:
        return Kernels((start, ntk[:, :n]))
    count = start.shape[1]
    require_memory(
        "outputs",
        f"the NTK on {m * count} x {n * count} slots",
        m * n * count**2 * ntk.dtype.itemsize,
        "Use fewer points or float32, or one output at a time.",
    )
    identity = jnp.eye(count, dtype=ntk.dtype)
    return Kernels((start, ntk[:, None, :n, None] * identity[None, :, None]))


def _zeros(problem: Problem, points: int, dtype: DTypeLike) -> Array:
    """Outputs 0, of the shape of the targets."""
    if isinstance(problem.loss, SoftmaxCrossEntropy) and problem.y_train.ndim == 1:
        raise ValueError(
            "outputs must be given where targets are class labels, as they do not say "
            "how many outputs there are: give jnp.zeros((m, C)) to "
            "nth.infinite.as_kernels, on m points."
        )
    return jnp.zeros((points, *problem.y_train.shape[1:]), dtype)


def at_any_width(kernels: Kernels | InfiniteKernels, problem: Problem) -> Kernels:
    """`kernels`, those of infinite width with outputs 0 at initialization."""
    if isinstance(kernels, InfiniteKernels):
        return as_kernels(kernels, problem)
    return kernels


def on_training_points(kernels: Kernels | InfiniteKernels) -> Kernels:
    """`kernels`, those of infinite width with all points as training points."""
    if not isinstance(kernels, InfiniteKernels):
        return kernels
    ntk = as_array("kernels", kernels.ntk)
    if ntk.ndim != 2 or len(ntk) != ntk.shape[1]:
        raise ValueError(
            f"kernels have shape {ntk.shape}: give those of the training points, "
            "nth.infinite.kernels(problem.x_train, ...)."
        )
    return Kernels((jnp.zeros(len(ntk), ntk.dtype), ntk))


def matching_kernels(kernels: Any, problem: Problem) -> InfiniteKernels:
    """`kernels` as finite arrays on all points of `problem`, and in its dtype."""
    require_instance("kernels", kernels, InfiniteKernels, EXAMPLE)
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    m, dtype = problem.n_train + problem.n_test, problem.y_train.dtype
    parts = [as_array("kernels", part) for part in (kernels.nngp, kernels.ntk)]
    for part in parts:
        if part.shape != (m, m):
            raise ValueError(
                f"kernels have shape {part.shape} and problem has m = {m} points: "
                f"form them by {EXAMPLE}."
            )
        if jnp.issubdtype(dtype, jnp.floating) and part.dtype != dtype:
            raise ValueError(
                f"kernels have dtype {part.dtype} and problem has {dtype}: cast one of "
                "them."
            )
    cure = f"form them by {EXAMPLE}."
    return InfiniteKernels(*checked_finite("kernels", parts, cure))
