"""Statistics of fully connected networks at initialization, to order 1/width."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, Float

from .._internal.precision import full_precision
from .._internal.validation import (
    require,
    require_integer,
)
from .._network.activations import (
    ACTIVATIONS,
    elementwise_activation,
    refuse_derivative,
)
from .._network.finiteness import checked_finite
from .._network.memory import require_memory
from ._fluctuations import Rates, Statistics, first_layer, next_layer
from ._joint_moments import joint_moments, pair_moments
from ._points import as_points
from ._recursion import LayerMaps, checked_sigmas, layers_of

# The time grows as the fourth power of the nodes.
_MOST_NODES = 129
# Every layer costs time, and its code is compiled by itself.
_MOST_LAYERS = 100
# The number of tensors over four points in memory: two layers, and moments.
_TENSORS = 60
# The largest change if a quarter of the nodes is left out. The error itself is then at
# least ten times smaller for an activation that is analytic.
_MAX_CHANGE = 0.03


class Corrections(eqx.Module):
    """Statistics at initialization: see [`nth.infinite.corrections`][].

    Those of one output f; n points, and f_a = f(x_a). K⁽ʳ⁾ is as in
    [`nth.kernels`][], with all its slots on these points.
    """

    nngp: Float[Array, "n n"]
    """𝒦_ab, the limit of E f_a f_b at infinite width."""

    ntk: Float[Array, "n n"]
    """Θ_ab, the limit of E K⁽²⁾_ab at infinite width."""

    nngp_correction: Float[Array, "n n"]
    """E f_a f_b − 𝒦_ab; zero for one hidden layer."""

    ntk_correction: Float[Array, "n n"]
    """E K⁽²⁾_ab − Θ_ab; zero for one hidden layer, except in `"standard"`."""

    output_cumulant: Float[Array, "n n n n"]
    """E f_a f_b f_c f_d − E f_a f_b · E f_c f_d − E f_a f_c · E f_b f_d
    − E f_a f_d · E f_b f_c, the connected four-point function."""

    ntk_covariance: Float[Array, "n n n n"]
    """E K⁽²⁾_ab K⁽²⁾_cd − E K⁽²⁾_ab · E K⁽²⁾_cd."""

    ntk_output_covariance: Float[Array, "n n n n"]
    """E K⁽²⁾_ab f_c f_d − E K⁽²⁾_ab · E f_c f_d."""

    third: Float[Array, "n n n n"]
    """E K⁽³⁾_abc f_d."""

    fourth: Float[Array, "n n n n"]
    """E K⁽⁴⁾_abcd: 𝒦⁽⁴⁾ of Huang & Yau (2020), eq. 11, divided by the width."""

    change: Float[Array, ""]
    """The largest change of a statistic, in units of its largest entry, if a quarter of
    the nodes is left out: a bound of the error of the Gaussian integrals."""


@full_precision
def corrections(
    x: ArrayLike | Sequence[Any],
    *,
    width: int | Sequence[int],
    depth: int,
    activation: str | Callable[[Array], Array] = "tanh",
    parameterization: Literal["nth", "ntk", "standard"] = "nth",
    use_bias: bool = False,
    sigma_w: Any = 1.0,
    sigma_a: Any = 1.0,
    sigma_b: Any = 1.0,
    nodes: int = 33,
) -> Corrections:
    r"""The statistics of [`nth.MLP`][] over initializations, to order 1/width.

    They are those that determine the mean and covariance of trained networks to that
    order, without sampling. Conditional on the earlier layers, the neurons of a layer
    are independent and Gaussian with the covariance Σ̂ = σ_b² + (σ²/m) Σ_j φ_j φ_j. Its
    mean is Σ + O(1/m) and its covariance V = O(1/m), and to first order each layer adds
    the fluctuation of a mean of m neurons to what it inherits:

        V(ab)(cd) ← σ⁴ [E φ_a φ_b φ_c φ_d − E φ_a φ_b · E φ_c φ_d]/m
            + ¼ σ⁴ Σ_{pq, rs} V(pq)(rs) E ∂_p ∂_q φ_a φ_b · E ∂_r ∂_s φ_c φ_d,

    and likewise for the NTK and for the contractions of higher derivatives of which
    K⁽³⁾ and K⁽⁴⁾ consist: Roberts, Yaida & Hanin (2022), chapters 4, 8 and 11; see also
    Hanin & Nica (2020). For one hidden layer every statistic is a
    mean over a single neuron and exact, with no terms of higher order in 1/width.

    The Gaussian means over four points are sums over `nodes` nodes in each of four
    dimensions. For tanh at unit variance the error is about 1e-4 of the largest entry
    of K⁽⁴⁾ and 1e-6 or less for the others, at 49 nodes 2e-7 and 1e-8.

    **Arguments:**

    - `x`: inputs, shape `(n, d)`.
    - `width`: neurons per hidden layer, or a sequence of `depth` such numbers.
    - `depth`, `activation`, `parameterization`, `use_bias`, `sigma_w`, `sigma_a`,
        `sigma_b`: as for [`nth.MLP`][]. The activation must have five derivatives. The
        depth may be 0: a linear model, whose outputs are Gaussian, with a constant NTK.
    - `nodes`: the number of nodes in each direction.

    **Returns:** [`nth.infinite.Corrections`][]: all statistics of order 1/width are at
    the given width. In `"standard"`, where the NTK grows as the width of the last
    hidden layer, K⁽²⁾ is divided by that width, K⁽³⁾ by its square and K⁽⁴⁾ by its
    cube, which are the kernels for learning rates of 1/width; at depth 0 by 1.

    The time grows as n⁴·`nodes`⁴ (5 points, tanh: about 5 s for each layer on 2 CPU
    cores), and the memory as n⁴.

    **Raises:** `ValueError` for invalid input, `"relu"` and other activations that are
    too rough or too steep for the nodes, or tensors that would not fit in memory.
    """
    points = as_points("x", x)
    why = "as every layer takes time"
    depth = require_integer("depth", depth, 0, _MOST_LAYERS, why)
    widths = widths_of(width, depth)
    why = "as the time grows as its fourth power"
    nodes = require_integer("nodes", nodes, 9, _MOST_NODES, why)
    given = {"sigma_w": sigma_w, "sigma_a": sigma_a, "sigma_b": sigma_b}
    sigmas = checked_sigmas(parameterization, use_bias, given, points.dtype)
    require_memory(
        "x",
        f"the statistics of {len(points)} points",
        _TENSORS * len(points) ** 4 * points.dtype.itemsize,
        "Use fewer points or float32.",
    )
    function = _smooth_activation(activation, points.dtype)
    layers = layers_of(sigmas, depth, parameterization, use_bias, points.shape[1])
    if parameterization != "nth":
        points = points / points.shape[1] ** 0.5
    rates = _rates(layers, parameterization, widths, points.shape[1])
    inputs = points @ points.T
    found = _statistics(inputs, rates, widths, function, nodes)
    coarse = _statistics(inputs, rates, widths, function, 3 * nodes // 4)
    return _checked(found, coarse, nodes)


def _smooth_activation(
    activation: str | Callable[[Array], Array], dtype: DTypeLike
) -> Callable[[Array], Array]:
    function = elementwise_activation(activation, dtype)
    if function is ACTIVATIONS["relu"]:
        raise ValueError(
            'activation is "relu", whose second derivative is not a function: K(3) and '
            "K(4) have no limit. nth.softplus is a smooth one."
        )
    refuse_derivative(function, dtype)
    return function


def _checked(
    found: tuple[Array, ...], coarse: tuple[Array, ...], nodes: int
) -> Corrections:
    """The statistics, with their change from `coarse` ones."""
    change = _largest_change(found, coarse)
    message = (
        f"activation is too rough or too steep for sums over {nodes} nodes in each "
        "direction: give more nodes, or a smoother activation."
    )
    found = tuple(require(part, change < _MAX_CHANGE, message) for part in found)
    cure = "rescale x, sigma_w, sigma_a or sigma_b."
    return Corrections(*checked_finite("corrections", found, cure), change)  # pyright: ignore


def _largest_change(
    found: tuple[Array, ...], coarse: tuple[Array, ...]
) -> Float[Array, ""]:
    """The largest change of a field of `Corrections`, in units of its largest entry.

    Corrections of the kernels may be zero up to rounding error of the kernels.
    """
    sizes = [jnp.max(jnp.abs(part)) for part in found]
    small = jnp.finfo(found[0].dtype).eps ** 0.5
    for k in (2, 3):
        sizes[k] = jnp.maximum(sizes[k], small * sizes[k - 2])
    changes = [
        jnp.max(jnp.abs(part - other)) / jnp.where(size > 0, size, 1)
        for part, other, size in zip(found, coarse, sizes, strict=True)
    ]
    return jnp.max(jnp.stack(changes))


def widths_of(width: Any, depth: int) -> tuple[int, ...]:
    if not isinstance(width, list | tuple):
        return (require_integer("width", width, 1),) * depth
    if len(width) != depth:
        raise ValueError(
            f"width must be a number, or a sequence of depth = {depth} numbers; got "
            f"{len(width)} of them."
        )
    return tuple(require_integer("width", number, 1) for number in width)


def _rates(
    layers: LayerMaps, parameterization: str, widths: tuple[int, ...], in_size: int
) -> tuple[list[Rates], list[Rates]]:
    """The variances and speeds of each layer as the width goes to infinity, and at the
    actual widths: they differ in "standard" only, where time is in units of
    1/(learning rate · width), with the width of the last hidden layer."""
    limit = [
        Rates(
            layers.weight[k],
            layers.bias[k],
            layers.weight_rate[k],
            layers.bias_rate[k],
        )
        for k in range(len(widths) + 1)
    ]
    if parameterization != "standard" or not widths:
        return limit, limit
    last = widths[-1]
    one = jnp.ones_like(layers.weight[0])
    biased = jnp.any(layers.bias != 0).astype(one.dtype)
    fans = (in_size, *widths)
    limit = [
        rates._replace(weight_rate=one * (fan / last if k else 0))
        for k, (rates, fan) in enumerate(zip(limit, fans, strict=True))
    ]
    actual = [
        rates._replace(weight_rate=one * fan / last, bias_rate=biased * one / last)
        for rates, fan in zip(limit, fans, strict=True)
    ]
    return limit, actual


def _statistics(
    inputs: Float[Array, "n n"],
    rates: tuple[list[Rates], list[Rates]],
    widths: tuple[int, ...],
    function: Callable[[Array], Array],
    nodes: int,
) -> tuple[Array, ...]:
    """The fields of `Corrections`, without the error estimate."""
    limit, actual = rates
    one = jnp.ones((), inputs.dtype)
    layer = first_layer(inputs, actual[0])
    ntk = limit[0].weight_rate * inputs + limit[0].bias_rate
    for width, slow, rate in zip(widths, limit[1:], actual[1:], strict=True):
        pairs = pair_moments(function, nodes, layer.covariance)
        joint = joint_moments(function, nodes, layer.covariance)
        layer = next_layer(layer, rate, one * width, pairs, joint)
        own = slow.weight_rate * pairs[0, 0] + slow.bias_rate
        ntk = own + slow.weight * pairs[1, 1] * ntk
    change = layer.ntk_mean if limit is actual else layer.ntk - ntk + layer.ntk_mean
    return (layer.covariance, ntk, layer.covariance_mean, change, *_of_output(layer))


def _of_output(last: Statistics) -> tuple[Array, ...]:
    """The statistics over four points for one output: all neurons are the same one."""
    v, a, b = last.outputs, last.ntk_same, last.ntk_cross
    d, f = last.ntk_outputs_same, last.ntk_outputs_cross
    t = jnp.transpose
    cumulant = v + t(v, (0, 2, 1, 3)) + t(v, (0, 2, 3, 1))
    covariance = a + jnp.einsum("acbd->abcd", b) + jnp.einsum("adbc->abcd", b)
    mixed = d + jnp.einsum("acbd->abcd", f) + jnp.einsum("adbc->abcd", f)
    p, q = last.third_first, last.third_second
    # E[dH(a; bc) f(d)]
    third = jnp.einsum("adbc->abcd", p) + q + jnp.einsum("acbd->abcd", q)
    third = third + jnp.einsum("bacd->abcd", third)
    r = last.fourth_one
    one = r + jnp.einsum("acdb->abcd", r) + jnp.einsum("adbc->abcd", r)
    two = last.fourth_two_hessians + jnp.einsum("acbd->abcd", last.fourth_two_same)
    two = two + jnp.einsum("adbc->abcd", last.fourth_two_other)
    # The derivative of f″(a) f′(b) f′(c) along f′(d), for K⁽³⁾ = that + (a ↔ b).
    fourth = one + two + jnp.einsum("acbd->abcd", two)
    fourth = fourth + jnp.einsum("bacd->abcd", fourth)
    return cumulant, covariance, mixed, third, fourth
