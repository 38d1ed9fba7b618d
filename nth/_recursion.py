"""The kernels of infinitely wide networks, layer by layer."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._gauss import Pairs, rule_for, safe_root


class Layer(NamedTuple):
    """What one layer does to second moments S of its inputs and to the NTK Θ of them:

    Σ = weight·S + bias, and Θ′ = weight_rate·S + bias_rate + weight·(Σ̇ ∘ Θ).
    """

    weight: Array
    bias: Array
    weight_rate: Array
    bias_rate: Array


def layers_of(
    sigmas: list[Array], depth: int, parameterization: str, use_bias: bool
) -> list[Layer]:
    sigma_w, sigma_a, sigma_b = sigmas
    one, zero = jnp.ones_like(sigma_b), jnp.zeros_like(sigma_b)
    bias = sigma_b**2 if use_bias else zero
    layers = []
    for layer in range(depth + 1):
        weight = (sigma_w if layer < depth else sigma_a) ** 2
        if parameterization == "ntk":
            layers.append(Layer(weight, bias, weight, bias))
        elif parameterization == "nth":
            layers.append(Layer(weight, bias, one, one if use_bias else zero))
        else:
            layers.append(Layer(weight, bias, one if layer else zero, zero))
    return layers


@eqx.filter_jit
def recursion(
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"] | None,
    layers: list[Layer],
    how: tuple[Callable[[Array], Array], int],
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"], Float[Array, ""]]:
    """Σ and Θ of the last layer, and the rule's doubt about them."""
    rule = rule_for(*how)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    i, j = np.triu_indices(n1) if x2 is None else np.indices((n1, n2)).reshape(2, -1)
    points = [x1] if x2 is None else [x1, x2]
    variances = [jnp.sum(x**2, axis=1) for x in points]
    cross = (points[0] @ points[-1].T)[i, j]
    versine = _first_versine(points, (i, j)) if rule.by_angle else None
    ntk, slope, doubt = jnp.zeros_like(cross), jnp.zeros_like(cross), []
    for depth, layer in enumerate(layers):
        if depth:
            doubt.extend(rule.doubt(variance) for variance in variances)
            moments = rule.moments(
                Pairs(variances[0][i], variances[-1][j], cross, versine)
            )
            cross, versine, slope = moments
            variances = [rule.square(variance) for variance in variances]
        ntk = layer.weight_rate * cross + layer.bias_rate + layer.weight * slope * ntk
        if versine is not None:
            versine = _with_bias(versine, variances[0][i], variances[-1][j], layer)
        cross = layer.weight * cross + layer.bias
        variances = [layer.weight * variance + layer.bias for variance in variances]
    nngp, ntk = (_as_matrix(values, (i, j), (n1, n2)) for values in (cross, ntk))
    return nngp, ntk, jnp.max(jnp.stack(doubt))


def _first_versine(
    points: list[Float[Array, "_ d"]], pairs: tuple[np.ndarray, np.ndarray]
) -> Float[Array, " P"]:
    """½‖x/‖x‖ − x′/‖x′‖‖², exactly zero at equal points."""
    norms = [safe_root(jnp.sum(x**2, axis=1, keepdims=True)) for x in points]
    units = [
        x / jnp.where(norm > 0, norm, 1) for x, norm in zip(points, norms, strict=True)
    ]

    def one(pair: tuple[Array, Array]) -> Array:
        return jnp.sum((units[0][pair[0]] - units[-1][pair[1]]) ** 2) / 2

    return jax.lax.map(one, tuple(map(jnp.asarray, pairs)), batch_size=1024)


def _with_bias(
    versine: Float[Array, " P"],
    first: Float[Array, " P"],
    second: Float[Array, " P"],
    layer: Layer,
) -> Float[Array, " P"]:
    """1 − cos of the angle once weights and bias have acted, in positive terms.

    With p, q the two deviations and β that of the bias, it is, over √((p²+β²)(q²+β²)),
    p q · versine + β²(p − q)²/(√((p²+β²)(q²+β²)) + p q + β²).
    """
    p, q = (safe_root(layer.weight * part) for part in (first, second))
    scale = safe_root(p**2 + layer.bias) * safe_root(q**2 + layer.bias)
    whole = scale + p * q + layer.bias
    apart = layer.bias * (p - q) ** 2 / jnp.where(whole > 0, whole, 1)
    turned = (p * q * versine + apart) / jnp.where(scale > 0, scale, 1)
    return jnp.where(scale > 0, turned, versine)


def _as_matrix(
    values: Float[Array, " P"],
    pairs: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
) -> Float[Array, "n1 n2"]:
    """The pairs in their places; (j, i) is (i, j) where only i ≤ j were worked out."""
    i, j = pairs
    matrix = jnp.zeros(shape, values.dtype).at[i, j].set(values)
    return matrix if len(i) == shape[0] * shape[1] else matrix.at[j, i].set(values)
