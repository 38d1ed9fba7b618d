"""Networks at infinite width: NNGP kernel, NTK and training."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._internal.precision import full_precision
from .._internal.validation import require_integer, require_positive
from .._kernels.infinite_width import (
    InfiniteKernels as InfiniteKernels,
    as_kernels as as_kernels,
)
from .._network.activations import elementwise_activation, refuse_derivative
from .._network.memory import require_memory
from ._ensemble import Ensemble as Ensemble, ensemble as ensemble
from ._finite_width import Corrections as Corrections, corrections as corrections
from ._gaussian_moments import kink_at_zero, rule_for
from ._layers import (
    AbstractLayer as AbstractLayer,
    Activation as Activation,
    Conv as Conv,
    Dense as Dense,
    Flatten as Flatten,
    GlobalAveragePool as GlobalAveragePool,
)
from ._learning_curve import (
    LearningCurve as LearningCurve,
    learning_curve as learning_curve,
)
from ._network_kernels import network_kernels as network_kernels
from ._nodes import require_enough_nodes, sufficient_nodes
from ._ntk_moments import NTKMoments as NTKMoments, ntk_moments as ntk_moments
from ._points import as_points, matching_inputs
from ._posterior import Posterior as Posterior, posterior as posterior
from ._propagation import (
    Propagation as Propagation,
    critical_line as critical_line,
    propagation as propagation,
)
from ._recursion import checked_sigmas, largest_change, layers_of, recursion
from ._residual import Residual as Residual

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
    relative_widths: Sequence[Any] | None = None,
    nodes: int | None = None,
) -> InfiniteKernels:
    r"""The NNGP kernel and the NTK of [`nth.MLP`][] as its width goes to infinity.

    Layer by layer (Jacot et al. 2018, Theorem 1; Lee et al. 2018), from S = xᵀx′ for
    `"nth"` and xᵀx′/d for the others,

        Σ = σ² S + σ_b²,    Θ ← s S + s_b + σ² Σ̇ ∘ Θ,
        S ← E φ(u) φ(v),    Σ̇ = E φ′(u) φ′(v),    (u, v) ~ N(0, Σ),

    where Σ and Θ of the last layer are the two kernels; σ is `sigma_w`, and `sigma_a`
    in the last layer. The speeds of weights and biases are s and s_b:

    | `parameterization` | s  | s_b  | `ntk`                     |
    |--------------------|----|------|---------------------------|
    | `"nth"`            | 1  | 1    | lim K⁽²⁾                  |
    | `"ntk"`            | σ² | σ_b² | lim K⁽²⁾                  |
    | `"standard"`       | 1, and 0 in the first layer | 0 | lim K⁽²⁾/width |

    In `"standard"` K⁽²⁾ grows as the width: its limit is that of K⁽²⁾/width, to which
    the first layer and the biases do not contribute, and time is in units of
    1/(learning rate · width). A network of depth 0, f = aᵀx + c, has no width, and its
    K⁽²⁾ is returned. The hidden layers may have different widths that all go to
    infinity. In `"standard"` the ratio r of a layer's fan-in to the width of the last
    hidden layer enters, as s = r: give `relative_widths`.

    The moments are in closed form for `"relu"`, `"erf"`, `"sin"` and `"linear"`; for
    others they are computed by the trapezoidal rule in two dimensions, which is exact
    up to rounding error for smooth functions such as tanh. A pair of points takes about
    2·`nodes`² activations in each layer.

    **Arguments:**

    - `x1`, `x2`: inputs, shapes `(n1, d)` and `(n2, d)`; `x2` is `x1` by default,
        which saves half of the work.
    - `depth`, `activation`, `parameterization`, `use_bias`, `sigma_w`, `sigma_a`,
        `sigma_b`: as for [`nth.MLP`][]; the depth may be 0.
    - `relative_widths`: in `"standard"`, numbers in proportion to the widths of the
        `depth` hidden layers; by default all are equal.
    - `nodes`: the number of nodes in each direction, odd; not used by closed forms. By
        default the first of 161, 321, 641 and 1,281 that is sufficient, or 161 under
        `jax.jit`.

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
    right = None if x2 is None else matching_inputs(as_points("x2", x2), left)
    why = "as every layer takes time"
    depth = require_integer("depth", depth, 0, _MOST_LAYERS, why)
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
    ratios = _ratios(relative_widths, depth, parameterization)
    options = (depth, parameterization, use_bias, ratios, function)
    both = left if right is None else jnp.concatenate([left, right])

    def change(count: int) -> Array:
        return _change(both, sigmas, (*options, count))

    by_sums = None if rule_for(function, 9).closed else change
    count, amount = sufficient_nodes(nodes, (both, sigmas), by_sums)
    parts = _computed(left, right, sigmas, (*options, count))
    return InfiniteKernels(*require_enough_nodes(parts, amount, count))


def _ratios(widths: Any, depth: int, parameterization: str) -> tuple[float, ...]:
    """The ratio of each layer's fan-in to the width of the last hidden layer; that of
    the first, whose rate is 0, is 1."""
    if widths is None:
        return (1.0,) * (depth + 1)
    given = tuple(widths) if isinstance(widths, list | tuple) else ()
    if len(given) != depth or parameterization != "standard":
        raise ValueError(
            f"relative_widths must be a sequence of depth = {depth} numbers, with "
            f'parameterization="standard"; got {widths!r} with {parameterization!r}. '
            "Leave it out where the kernels do not depend on it."
        )
    numbers = [
        float(require_positive(f"relative_widths[{k}]", number))
        for k, number in enumerate(given)
    ]
    return (1.0, *(number / numbers[-1] for number in numbers))


_Options = tuple[int, str, bool, tuple[float, ...], Callable[[Array], Array], int]


@eqx.filter_jit
def _computed(
    left: Float[Array, "n1 d"],
    right: Float[Array, "n2 d"] | None,
    sigmas: list[Array],
    options: _Options,
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    depth, parameterization, use_bias, ratios, function, nodes = options
    layers = layers_of(sigmas, depth, parameterization, use_bias, left.shape[1])
    rates = jnp.asarray(ratios, layers.weight.dtype) * layers.weight_rate
    layers = layers._replace(weight_rate=rates)
    left = _scaled(left, parameterization)
    right = None if right is None else _scaled(right, parameterization)
    return recursion(left, right, layers, (function, nodes), use_bias)


@eqx.filter_jit
def _change(
    points: Float[Array, "n d"], sigmas: list[Array], options: _Options
) -> Float[Array, ""]:
    """The largest relative change of a mean over one point with the nodes."""
    depth, parameterization, use_bias, _, function, nodes = options
    layers = layers_of(sigmas, depth, parameterization, use_bias, points.shape[1])
    points = _scaled(points, parameterization)
    change = largest_change(rule_for(function, nodes), layers, points)
    return jnp.maximum(change, kink_at_zero(function, points.dtype))


def _scaled(points: Float[Array, "n d"], parameterization: str) -> Array:
    return points if parameterization == "nth" else points / points.shape[1] ** 0.5
