"""Mean and variance of the NTK at one point, exact in the widths, for ReLU networks."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._internal.precision import full_precision
from .._internal.validation import require_integer, require_name
from .._network.finiteness import checked_finite
from ._finite_width import widths_of
from ._points import as_points
from ._recursion import checked_sigmas

_MOST_LAYERS = 10_000


class NTKMoments(eqx.Module):
    """Mean and variance of K⁽²⁾(x, x): see [`nth.infinite.ntk_moments`][]."""

    mean: Float[Array, " n"]
    """E K⁽²⁾(x, x)."""

    variance: Float[Array, " n"]
    """E K⁽²⁾(x, x)² − [E K⁽²⁾(x, x)]²."""

    @property
    def relative_variance(self) -> Float[Array, " n"]:
        """The variance divided by the square of the mean."""
        return self.variance / self.mean**2


class _Products(NamedTuple):
    """Means over initializations, at one point after a layer and its activation.

    With u the activations of m neurons, M = ξ H ξ for the NTK H of the neurons and the
    slopes ξ of their activations: S = |u|²/m, T = tr M/m, F = tr M²/m² and
    G = uᵀM u/m². With one layer more u and M depend on these only, since weights are
    Gaussian.
    """

    s: Array
    t: Array
    ss: Array
    st: Array
    tt: Array
    f: Array
    g: Array


@full_precision
def ntk_moments(
    x: ArrayLike | Sequence[Any],
    *,
    width: int | Sequence[int],
    depth: int,
    activation: Literal["relu", "linear"] = "relu",
    parameterization: Literal["nth", "ntk", "standard"] = "nth",
    sigma_w: Any = 1.0,
    sigma_a: Any = 1.0,
) -> NTKMoments:
    """Mean and variance over initializations of the NTK at each point, exact at any
    width.

    For ReLU networks without bias. At one point the slopes of ReLU are independent of
    each other and of the weights, 0 or 1 with probability ½ (Hanin & Nica 2020): the
    sign of a neuron's input can be moved to its outgoing weights. What remains are
    moments of products of Gaussian matrices, in a recursion over layers of seven
    numbers. For large widths m_ℓ the relative variance of a deep network grows as
    exp(5 Σ_ℓ 1/m_ℓ) with σ_w² = 2: it is a function of depth/width, and not small
    where the depth is comparable to the width.

    **Arguments:**

    - `x`: inputs, shape `(n, d)`.
    - `width`: neurons per hidden layer, or a sequence of `depth` such numbers.
    - `activation`: `"relu"`, or `"linear"`, whose slopes are 1.
    - `depth`, `parameterization`, `sigma_w`, `sigma_a`: as for [`nth.MLP`][].

    **Returns:** [`nth.infinite.NTKMoments`][].

    **Raises:** `ValueError` for invalid input.
    """
    points = as_points("x", x)
    why = "as every layer takes time"
    depth = require_integer("depth", depth, 1, _MOST_LAYERS, why)
    widths = widths_of(width, depth)
    require_name("activation", activation, ("relu", "linear"))
    given = {"sigma_w": sigma_w, "sigma_a": sigma_a}
    weight, last = checked_sigmas(parameterization, False, given, points.dtype)
    size = jnp.sum(points**2, axis=1)
    if parameterization != "nth":
        size = size / points.shape[1]
    share = 0.5 if activation == "relu" else 1.0
    none = jnp.zeros_like(size)
    products = _Products(size, none, size**2, none, none, none, none)
    for fan_in, count in zip((points.shape[1], *widths), widths, strict=False):
        rate = _rate(parameterization, weight, fan_in)
        products = _next(products, weight**2, rate, count, share)
    variance, rate = last**2, _rate(parameterization, last, widths[-1])
    mean = rate * products.s + variance * products.t
    square = _square(products, variance, rate)
    cure = "rescale x, sigma_w or sigma_a."
    return NTKMoments(*checked_finite("moments", (mean, square - mean**2), cure))


def _rate(parameterization: str, sigma: Scalar, fan_in: int) -> Scalar:
    """The speed of weights, for which their part of the NTK is rate·S."""
    one = jnp.ones_like(sigma)
    return {"nth": one, "ntk": sigma**2, "standard": fan_in * one}[parameterization]


def _square(products: _Products, weight: Scalar, rate: Scalar) -> Array:
    """E H² of one neuron, H = rate·S + weight·wᵀM w/m for a standard Gaussian w."""
    by_weights = weight**2 * (products.tt + 2 * products.f)
    return rate**2 * products.ss + 2 * rate * weight * products.st + by_weights


def _next(
    old: _Products, weight: Scalar, rate: Scalar, count: int, share: float
) -> _Products:
    """The means after a layer of `count` neurons, each of slope 1 with probability
    `share`: pairs of equal neurons, and of different ones."""
    same, different = share / count, share**2 * (1 - 1 / count)
    square = _square(old, weight, rate)
    # E z² H of one neuron, z² = weight·(w·u)²/m.
    mixed = weight * rate * old.ss + weight**2 * (old.st + 2 * old.g)
    own = rate**2 * old.ss + 2 * rate * weight * old.st + weight**2 * old.tt
    return _Products(
        s=share * weight * old.s,
        t=share * (rate * old.s + weight * old.t),
        ss=(3 * same + different) * weight**2 * old.ss,
        st=same * mixed + different * weight * (rate * old.ss + weight * old.st),
        tt=same * square + different * own,
        f=same * square + different * weight**2 * old.f,
        g=same * mixed + different * weight**2 * old.g,
    )
