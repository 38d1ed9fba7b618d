"""Signal propagation: variances and correlations of deep networks at infinite width."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._internal.precision import full_precision
from .._internal.validation import as_array, require_finite, require_integer
from .._network.activations import elementwise_activation, refuse_derivative
from ._bisection import arithmetic, bisect
from ._gaussian_moments import Function, Pairs, Rule, rule_for

# Sums over one and two dimensions for one point and one pair: more nodes cost little.
_MOST_NODES = 2001
# Variances outside of these limits count as 0 and ∞.
_SMALLEST, _LARGEST = 1e-12, 1e4
# The search for a fixed point goes on by this factor until the map crosses q′ = q; then
# bisections shrink the interval to rounding error.
_FACTOR, _BISECTIONS = 1.05, 60


class Propagation(eqx.Module):
    """Fixed points and depth scales: see [`nth.infinite.propagation`][].

    Every field has the shape of `sigma_w` and `sigma_b`, broadcast.
    """

    variance: Float[Array, "*shape"]
    """q*, the variance of a neuron's input in a deep layer; ∞ if it grows without
    bound."""

    chi: Float[Array, "*shape"]
    """χ = σ_w² E φ′(z)², z ~ N(0, q*): the factor by which a layer changes the squared
    distance of two nearby points, and the squared norm of a gradient. Below 1 the
    network is in the ordered phase, above 1 in the chaotic phase."""

    variance_slope: Float[Array, "*shape"]
    """dq′/dq at the fixed point q*: the factor by which a layer changes a deviation."""

    correlation: Float[Array, "*shape"]
    """c*, the stable fixed point of the correlation of two points: 1 in the ordered
    phase, less in the chaotic phase."""

    correlation_slope: Float[Array, "*shape"]
    """dc′/dc at c*."""

    @property
    def depth_scale(self) -> Float[Array, "*shape"]:
        """ξ_c = −1/log dc′/dc: correlations tend to c* as e^{−depth/ξ_c}; ∞ at the edge
        of chaos."""
        return _depth_scale(self.correlation_slope)

    @property
    def variance_depth_scale(self) -> Float[Array, "*shape"]:
        """ξ_q = −1/log dq′/dq: variances tend to q* as e^{−depth/ξ_q}."""
        return _depth_scale(self.variance_slope)


@full_precision
def propagation(
    activation: str | Callable[[Array], Array] = "tanh",
    *,
    sigma_w: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
    nodes: int = 161,
) -> Propagation:
    r"""How variances and correlations propagate through a deep, wide network.

    At infinite width a layer maps the variance q of its inputs and the correlation c of
    two points of variance q* to

        q′ = σ_w² E φ(z)² + σ_b²,
        c′ = [σ_w² E φ(u) φ(v) + σ_b²]/q*,    (u, v) of covariance q*[1, c; c, 1]

    (Poole et al. 2016). Their fixed points q* and c*, and the slopes there, say how
    deep a network can be trained (Schoenholz et al. 2017): two points, and the
    gradients, are distinguished to a depth of a few times `depth_scale`, which is
    infinite where χ = 1.

    **Arguments:**

    - `activation`: as for [`nth.infinite.kernels`][].
    - `sigma_w`, `sigma_b`: arrays or numbers; σ_b = 0 is a network without bias.
    - `nodes`: the number of nodes in each direction; not used by closed forms.

    **Returns:** [`nth.infinite.Propagation`][]. The variance is the fixed point to
    which a variance of 1 tends, unless the map only touches q′ = q there, or crosses it
    twice within 5 %, as at the edge of chaos of GELU. Above 1e4 it is taken as ∞, and
    the other fields are those at 1e4. Where there are too few nodes for the activation
    they are NaN.

    **Raises:** `ValueError` for invalid input.
    """
    sigmas = [
        _scales(name, value)
        for name, value in (("sigma_w", sigma_w), ("sigma_b", sigma_b))
    ]
    try:
        weights, biases = jnp.broadcast_arrays(*sigmas)
    except ValueError:
        raise ValueError(
            f"sigma_w and sigma_b must broadcast; got shapes {sigmas[0].shape} and "
            f"{sigmas[1].shape}."
        ) from None
    function, nodes = _checked(activation, nodes, weights.dtype)
    squares = weights.reshape(-1) ** 2, biases.reshape(-1) ** 2
    flat = _everywhere(function, nodes, squares)
    return Propagation(*(part.reshape(weights.shape) for part in flat))


@full_precision
def critical_line(
    activation: str | Callable[[Array], Array] = "tanh",
    *,
    variance: ArrayLike,
    nodes: int = 161,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The edge of chaos: (σ_w, σ_b) for which χ = 1 at the fixed point q* = `variance`,

        σ_w² = 1/E φ′(z)²,    σ_b² = q* − σ_w² E φ(z)²

    (Poole et al. 2016). σ_b is NaN where its square is negative: no network has this
    fixed point and χ = 1.

    **Arguments:** `activation` and `nodes` as for [`nth.infinite.propagation`][];
    `variance`, an array or a number of at least 0.

    **Returns:** `(sigma_w, sigma_b)`, each of the shape of `variance`.

    **Raises:** `ValueError` for invalid input.
    """
    q = _scales("variance", variance)
    rule = rule_for(*_checked(activation, nodes, q.dtype))
    flat = q.reshape(-1)
    slope = rule.moments(_same_point(flat, jnp.ones_like(flat))).slope
    weight = 1 / slope
    # σ_b² is a difference, and 0 up to rounding error where it vanishes.
    bias = flat - weight * rule.square(flat)
    rounding = 100 * jnp.finfo(q.dtype).eps * flat
    bias = jnp.where(jnp.abs(bias) <= rounding, 0, bias)
    bias = jnp.where(bias >= 0, jnp.sqrt(jnp.where(bias >= 0, bias, 0)), jnp.nan)
    return jnp.sqrt(weight).reshape(q.shape), bias.reshape(q.shape)


def _scales(name: str, value: Any) -> Array:
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if jnp.any(require_finite(name, array) < 0):
        raise ValueError(f"{name} must not be negative; got {value!r}.")
    return array


def _checked(activation: Any, nodes: int, dtype: Any) -> tuple[Function, int]:
    why = "as the time grows as its square"
    nodes = require_integer("nodes", nodes, 9, _MOST_NODES, why)
    function = elementwise_activation(activation, dtype)
    refuse_derivative(function, dtype)
    return function, nodes


@eqx.filter_jit
def _everywhere(
    function: Function, nodes: int, squares: tuple[Array, Array]
) -> tuple[Array, ...]:
    rule = rule_for(function, nodes)
    return jax.lax.map(lambda pair: _at(rule, *pair), squares, batch_size=64)


def _depth_scale(slope: Array) -> Array:
    return jnp.abs(1 / jnp.log(jnp.abs(slope)))


def _same_point(q: Float[Array, " n"], c: Float[Array, " n"]) -> Pairs:
    """Two points of variance q and correlation c."""
    return Pairs(q, q, q * c, 1 - c)


def _at(rule: Rule, weight: Scalar, bias: Scalar) -> tuple[Array, ...]:
    """The fields of `Propagation`, from σ_w² and σ_b²."""

    def next_variance(q: Scalar) -> Scalar:
        return weight * rule.square(q[None])[0] + bias

    variance = _fixed_variance(next_variance, weight)
    q = jnp.minimum(variance, _LARGEST)
    _, slope = jax.jvp(next_variance, (q,), (jnp.ones_like(q),))

    def moments(c: Scalar) -> tuple[Scalar, Scalar]:
        """The next correlation, and its slope."""
        found = rule.moments(_same_point(q[None], c[None]))
        scale = jnp.where(q > 0, q, 1)
        return (weight * found.value[0] + bias) / scale, weight * found.slope[0]

    one = jnp.ones_like(q)
    chi = moments(one)[1]
    # At an infinite variance q* is not a fixed point, and ratios are to the next one.
    ratio = jnp.where(jnp.isinf(variance), next_variance(q) / q, 1)
    chaotic = (chi / ratio > 1) & (q > 0)

    def above(c: Scalar) -> Array:
        return moments(c)[0] / ratio > c

    # c′ is convex in c ≥ 0: above c below c*, and below c between c* and 1.
    ends = (0 * one, one * (1 - jnp.finfo(q.dtype).eps))
    fixed = bisect(above, *ends, _BISECTIONS, arithmetic)
    correlation = jnp.where(chaotic, fixed, one)
    at_fixed = moments(correlation)[1] / ratio
    enough = rule.change(q[None]) < 1e-3
    fields = (chi, slope, correlation, jnp.where(chaotic, at_fixed, chi / ratio))
    return variance, *(jnp.where(enough, part, jnp.nan) for part in fields)


def _fixed_variance(next_variance: Callable[[Scalar], Scalar], like: Scalar) -> Scalar:
    """The fixed point to which a variance of 1 tends, if the map is increasing."""
    one = jnp.ones_like(like)
    grows = next_variance(one) > one
    factor = jnp.where(grows, _FACTOR * one, one / _FACTOR)

    def before(q: Scalar) -> Array:
        return (next_variance(q) > q) == grows

    def goes_on(q: Scalar) -> Array:
        return (q < _LARGEST) & (q > _SMALLEST) & before(q)

    end = jax.lax.while_loop(goes_on, lambda q: q * factor, one)
    crossing = bisect(before, end / factor, end, _BISECTIONS, arithmetic)
    fixed = jnp.where(end >= _LARGEST, jnp.inf, crossing)
    fixed = jnp.where(end <= _SMALLEST, 0, fixed)
    # Every variance is a fixed point of ReLU at σ_w² = 2, up to rounding error.
    still = jnp.abs(next_variance(one) - one) <= 8 * jnp.finfo(one.dtype).eps
    return jnp.where(still, one, fixed)
