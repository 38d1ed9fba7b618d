"""Fully connected networks at infinite width: NNGP kernel, NTK and training."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._internal.precision import full_precision
from .._internal.validation import require, require_integer
from .._network.activations import (
    ACTIVATIONS,
    elementwise_activation,
    refuse_derivative,
)
from .._network.finiteness import checked_finite
from .._network.memory import require_memory
from ._ensemble import Ensemble as Ensemble, ensemble as ensemble
from ._finite_width import Corrections as Corrections, corrections as corrections
from ._infinite_kernels import (
    InfiniteKernels as InfiniteKernels,
    Posterior as Posterior,
    as_kernels as as_kernels,
    posterior as posterior,
)
from ._learning_curve import (
    LearningCurve as LearningCurve,
    learning_curve as learning_curve,
)
from ._points import as_points
from ._propagation import (
    Propagation as Propagation,
    critical_line as critical_line,
    propagation as propagation,
)
from ._recursion import checked_sigmas, layers_of, recursion

# A pair of points takes about 2·nodes² activations in each layer.
_MOST_NODES, _WHY_NODES = 10_001, "as the time grows as its square"
# The largest relative change of a mean when the spacing of the nodes is doubled: the
# error itself is then below 1e-8.
_MAX_CHANGE = 1e-3
# Every layer costs time, and compiled code cannot be interrupted.
_MOST_LAYERS = 1000


@full_precision
def kernels(
    x1: ArrayLike | Sequence[Any],
    x2: ArrayLike | Sequence[Any] | None = None,
    *,
    depth: int,
    activation: str | Callable[[Array], Array] = "tanh",
    parameterization: Literal["nth", "ntk", "standard"] = "nth",
    use_bias: bool = False,
    sigma_w: Any = 1.0,
    sigma_a: Any = 1.0,
    sigma_b: Any = 1.0,
    nodes: int = 161,
) -> InfiniteKernels:
    r"""The NNGP kernel and the NTK of [`nth.MLP`][] as its width goes to infinity.

    Layer by layer (Jacot et al. 2018, Theorem 1; Lee et al. 2018), from S = xᵀx′ for
    `"nth"` and xᵀx′/d for the others,

        Σ = σ² S + σ_b²,       S ← E φ(u) φ(v),    Σ̇ = E φ′(u) φ′(v),  (u, v) ~ N(0,
        Σ), Θ ← s S + s_b + σ² Σ̇ ∘ Θ,

    where Σ and Θ of the last layer are the two kernels; σ is `sigma_w`, and `sigma_a`
    in the last layer. The speeds of weights and biases are s and s_b:

    | `parameterization` | s  | s_b  | `ntk`                     |
    |--------------------|----|------|---------------------------|
    | `"nth"`            | 1  | 1    | lim K⁽²⁾                  |
    | `"ntk"`            | σ² | σ_b² | lim K⁽²⁾                  |
    | `"standard"`       | 1, and 0 in the first layer | 0 | lim K⁽²⁾/width |

    In `"standard"` K⁽²⁾ grows as the width: its limit is that of K⁽²⁾/width, to which
    the first layer and the biases do not contribute, and time is in units of
    1/(learning rate · width).

    The moments are in closed form for `"relu"`, `"erf"`, `"sin"` and `"linear"`; for
    others they are computed by the trapezoidal rule in two dimensions, which is exact
    up to rounding error for smooth functions such as tanh. A pair of points takes about
    2·`nodes`² activations in each layer.

    **Arguments:**

    - `x1`, `x2`: inputs, shapes `(n1, d)` and `(n2, d)`; `x2` is `x1` by default,
        which saves half of the work.
    - `depth`, `activation`, `parameterization`, `use_bias`, `sigma_w`, `sigma_a`,
        `sigma_b`: as for [`nth.MLP`][].
    - `nodes`: the number of nodes in each direction, odd; not used by closed forms.

    **Returns:** [`nth.infinite.InfiniteKernels`][].

    The result is differentiable in the inputs and the scales, also where points
    coincide; the NTK of ReLU has a kink there, and the mean of its slopes is used.
    Second derivatives in reverse mode at points that coincide are NaN for a `depth`
    above 16 or for n1·n2·`depth` above 2²⁰.

    The memory is little more than that of the two kernels.

    **Raises:** `ValueError` for invalid input, kernels that would not fit in memory, or
    an activation that is too rough or too steep for the number of nodes.
    """
    left = as_points("x1", x1)
    right = None if x2 is None else _matching(as_points("x2", x2), left)
    why = "as every layer takes time"
    depth = require_integer("depth", depth, 1, _MOST_LAYERS, why)
    if require_integer("nodes", nodes, 9, _MOST_NODES, _WHY_NODES) % 2 == 0:
        raise ValueError(
            f"nodes must be odd, so that every second node can be used; got {nodes}."
        )
    given = {"sigma_w": sigma_w, "sigma_a": sigma_a, "sigma_b": sigma_b}
    sigmas = checked_sigmas(parameterization, use_bias, given, left.dtype)
    shape = (len(left), len(left if right is None else right))
    require_memory(
        "x1",
        f"the NNGP kernel and the NTK on {shape[0]} x {shape[1]} points",
        2 * shape[0] * shape[1] * left.dtype.itemsize,
        "Use fewer points, float32, or blocks of rows: some of the points as x1 and "
        "all of them as x2.",
    )
    function = elementwise_activation(activation, left.dtype)
    refuse_derivative(function, left.dtype)
    options = (depth, parameterization, use_bias, function, nodes)
    nngp, ntk, change = _computed(left, right, sigmas, options)
    tolerance = max(_MAX_CHANGE, 1000 * float(jnp.finfo(left.dtype).eps))
    message = (
        f"activation is too rough or too steep for sums over {nodes} nodes in each "
        "direction: give more nodes if it is smooth; of activations with a kink only "
        '"relu" can be used (nth.softplus is a smooth one).'
    )
    nngp, ntk = (require(k, change < tolerance, message) for k in (nngp, ntk))
    cure = "rescale x1, x2, sigma_w, sigma_a or sigma_b."
    return InfiniteKernels(*checked_finite("kernels", (nngp, ntk), cure))


@eqx.filter_jit
def _computed(
    left: Float[Array, "n1 d"],
    right: Float[Array, "n2 d"] | None,
    sigmas: list[Array],
    options: tuple[int, str, bool, Callable[[Array], Array], int],
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"], Float[Array, ""]]:
    """The kernels, and the relative change of a mean with the number of nodes."""
    depth, parameterization, use_bias, function, nodes = options
    layers = layers_of(sigmas, depth, parameterization, use_bias)
    if parameterization != "nth":
        root = left.shape[1] ** 0.5
        left, right = left / root, None if right is None else right / root
    nngp, ntk, change = recursion(left, right, layers, (function, nodes), use_bias)
    if function is not ACTIVATIONS["relu"]:  # its moments are in closed form
        change = jnp.maximum(change, _kink_at_zero(function, left.dtype))
    return nngp, ntk, change


def _kink_at_zero(function: Callable[[Array], Array], dtype: Any) -> Array:
    """The jump of the slope at 0, in units of the slope at ±1.

    The nodes are symmetric about 0, so sums over every second node show no kink there.
    """
    near = float(jnp.finfo(dtype).eps) ** 0.5
    z = jnp.asarray([near, -near, 1.0, -1.0], dtype)
    slopes = jax.jvp(function, (z,), (jnp.ones_like(z),))[1]
    size = jnp.maximum(jnp.max(jnp.abs(slopes[2:])), near)
    jump = jnp.abs(slopes[0] - slopes[1]) / size
    return jnp.where(jump > 1e-2, jump, 0)


def _matching(x2: Float[Array, "n2 _"], x1: Float[Array, "n1 d"]) -> Array:
    if x2.shape[1] != x1.shape[1] or x2.dtype != x1.dtype:
        raise ValueError(
            f"x2 has inputs of size {x2.shape[1]} and dtype {x2.dtype}, x1 of size "
            f"{x1.shape[1]} and dtype {x1.dtype}: they must be equal."
        )
    return x2
