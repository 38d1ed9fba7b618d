"""Points at which outputs, gradients or kernels are NaN or infinite."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Inputs, Params
from .._internal.validation import all_finite, is_traced, require
from .._problem.inputs import count
from .base import OutputFunction

# The number of points whose gradients are computed together.
_BATCH = 64
_CURE = (
    "Remove these points, or make the network differentiable there, for instance by "
    "jnp.sqrt(s + 1e-12) in place of jnp.sqrt(s)."
)


def checked_finite(
    argument: str, arrays: Sequence[Array], cure: str
) -> tuple[Array, ...]:
    """`arrays`; raises an error for NaN or infinity, at run time if traced."""
    message = f"{argument} have NaN or infinite entries: {cure}"
    return require(tuple(arrays), all_finite(*arrays), message)


def cause_of_non_finite(
    apply: OutputFunction, params: Params, x: Inputs, n_train: int
) -> str | None:
    """A description of where the outputs or their gradients are NaN or infinite.

    `x` has the training points first. `None` if both are finite at every point.
    """
    outputs, norms = _outputs_and_norms(apply, params, x)
    bad = rows_not_finite(outputs)
    if bad.size:
        return (
            f"the network's output is NaN or infinite at {name_points(bad, n_train)}. "
            f"{_CURE}"
        )
    bad = rows_not_finite(norms)
    if bad.size:
        return (
            "the gradient of the network's output with respect to its parameters is "
            f"NaN or infinite at {name_points(bad, n_train)}, such as that of a norm, "
            f"a square root or a quotient at 0. {_CURE}"
        )
    return None


def require_finite_result(
    purpose: str,
    arrays: Any,
    apply: OutputFunction,
    params: Params,
    x: Inputs,
    n_train: int,
    *,
    otherwise: str = "a higher derivative of the network is NaN or infinite at some "
    "point, or all of its first derivatives are 0.",
) -> None:
    """Raise `ValueError` if `arrays`, a result at the points `x`, are not finite.

    The training points are the first `n_train`; `otherwise` is the cause if outputs and
    gradients are finite. Traced values are not checked.
    """
    leaves = jax.tree.leaves(arrays)
    if is_traced(leaves) or bool(all_finite(*leaves)):
        return
    cause = cause_of_non_finite(apply, params, x, n_train) or otherwise
    raise ValueError(f"network: {purpose} has NaN or infinite entries: {cause}")


@eqx.filter_jit
def _outputs_and_norms(
    apply: OutputFunction, params: Params, x: Inputs
) -> tuple[Float[Array, "points *out"], Float[Array, " points"]]:
    """Outputs, and the squared norms of the gradients of their sums."""

    def squared_norm(point: Inputs) -> Float[Array, ""]:
        gradient = jax.grad(lambda p: jnp.sum(apply(p, point)))(params)
        return sum(
            (jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)),
            jnp.zeros((), jax.tree.leaves(params)[0].dtype),
        )

    norms = jax.lax.map(squared_norm, x, batch_size=min(_BATCH, count(x)))
    return apply.over(params, x), norms


def rows_not_finite(values: Array) -> np.ndarray:
    """The indices of the points at which `values` is NaN or infinite."""
    bad = ~np.isfinite(np.asarray(values)).reshape(len(values), -1)
    return np.flatnonzero(bad.any(axis=1))


def name_points(indices: np.ndarray, n_train: int) -> str:
    """The points as indices of `x_train` and `x_test`."""
    parts = []
    for name, chosen in (
        ("x_train", indices[indices < n_train]),
        ("x_test", indices[indices >= n_train] - n_train),
    ):
        if chosen.size:
            listed = ", ".join(map(str, chosen[:5])) + ", …" * (chosen.size > 5)
            parts.append(f"{name}[{listed}]")
    return " and ".join(parts)
