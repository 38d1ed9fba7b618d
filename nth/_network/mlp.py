"""Fully connected networks in the standard parameterizations."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .._internal.validation import (
    is_traced,
    require_bool,
    require_integer,
    require_key,
    require_name,
    require_scale,
    require_supported_dtype,
)
from .activations import as_activation
from .memory import require_memory

# Each layer is compiled separately, so compile time grows with depth.
_MOST_LAYERS = 1000


class _Scales(NamedTuple):
    """Scales of a layer at initialization and in the forward pass."""

    weight_std: Any
    bias_std: Any
    weight: float = 1.0
    bias: float = 1.0
    activation: float = 1.0


def _scales(
    parameterization: str, sigma: Any, sigma_b: Any, fan_in: int, fan_out: int
) -> _Scales:
    if parameterization == "nth":
        return _Scales(sigma, sigma_b, activation=fan_out**-0.5)
    if parameterization == "ntk":
        return _Scales(1.0, 1.0, weight=sigma * fan_in**-0.5, bias=sigma_b)
    return _Scales(sigma * fan_in**-0.5, sigma_b)


def _draw(
    key: PRNGKeyArray, fan_in: int, fan_out: int, scales: _Scales, dtype: DTypeLike
) -> tuple[Float[Array, "fan_out fan_in"], Float[Array, " fan_out"]]:
    w_key, b_key = jax.random.split(key)
    w = jax.random.normal(w_key, (fan_out, fan_in), dtype)
    b = jax.random.normal(b_key, (fan_out,), dtype)
    w_std, b_std = (jnp.asarray(s, dtype) for s in (scales.weight_std, scales.bias_std))
    return w * w_std, b * b_std


def _scales_of(
    parameterization: str, given: dict[str, Any], fans: list[tuple[int, int]]
) -> list[_Scales]:
    """The scales of each layer, from `sigma_w`, `sigma_a` and `sigma_b`, checked."""
    sigma_w, sigma_a, sigma_b = (require_scale(*item) for item in given.items())
    if parameterization == "ntk":
        _refuse_traced(sigma_w, sigma_a, sigma_b)
    sigmas = [sigma_w] * (len(fans) - 1) + [sigma_a]
    return [
        _scales(parameterization, sigma, sigma_b, *fan)
        for sigma, fan in zip(sigmas, fans, strict=True)
    ]


def _refuse_traced(*sigmas: Any) -> None:
    if is_traced(*sigmas):
        raise ValueError(
            'sigma_w, sigma_a and sigma_b enter the forward pass of "ntk" and must '
            "be numbers there; differentiate with respect to a weight scale with "
            '"nth" or "standard", or scale the outputs.'
        )


def _float_dtype(dtype: Any) -> np.dtype:
    """`dtype` as a floating-point dtype that JAX supports as configured."""
    default = jnp.dtype(jnp.result_type(float))
    if dtype is None or dtype is float:
        return default
    try:
        requested = jnp.dtype(dtype)
    except TypeError:
        requested = None
    if requested is None or not jnp.issubdtype(requested, jnp.floating):
        raise ValueError(f"dtype must be float32 or float64; got {dtype!r}.")
    require_supported_dtype("dtype", requested)
    if jax.dtypes.canonicalize_dtype(requested) != requested:
        raise ValueError(
            f"dtype: JAX computes in {default}, and {requested} is requested. Leave "
            'out dtype, or set jax.config.update("jax_enable_x64", True).'
        )
    return requested


class MLP(eqx.Module):
    r"""A fully connected network with `depth` hidden layers of `width` neurons.

    | `parameterization` | layer                                  | initialization         |
    |--------------------|----------------------------------------|------------------------|
    | `"nth"`            | x⁽ˡ⁾ = σ(W x⁽ˡ⁻¹⁾ + b)/√width, f = aᵀx⁽ᴴ⁾ + b | W ~ N(0, σ_w²), a ~ N(0, σ_a²), b ~ N(0, σ_b²) |
    | `"ntk"`            | z = σ W x/√fan_in + σ_b b              | W, b ~ N(0, 1)         |
    | `"standard"`       | z = W x + b                            | W ~ N(0, σ²/fan_in), b ~ N(0, σ_b²) |

    with σ = `sigma_w` in hidden layers and `sigma_a` in the last. `"nth"` is eqs. 1–2
    of Huang & Yau (2020), who use no bias; `"ntk"` is that of Jacot et al. (2018).

    **Arguments:**

    - `in_size`: the size of one input, which has shape `(in_size,)`.
    - `width`, `depth`: neurons per hidden layer, and the number of hidden layers (≥ 1).
    - `out_size`: `"scalar"` for outputs of shape `()`, or C for `(C,)`.
    - `activation`: a name (`"tanh"`, `"erf"`, `"relu"`, `"gelu"`, `"sigmoid"`,
        `"softplus"`, `"sin"`, `"linear"`) or any elementwise function. Networks with a
        named activation can be pickled.
    - `use_bias`, `sigma_w`, `sigma_a`, `sigma_b`: as in the table.
    - `dtype`: the parameters' dtype, float32 or float64; by default JAX's default.
    - `key`: a `jax.random.key` for the initialization.

    **Raises:** `ValueError` for an unknown name, a size below 1 or an invalid scale.
    """  # noqa: E501

    weights: tuple[Float[Array, "fan_out fan_in"], ...]
    biases: tuple[Float[Array, " fan_out"], ...] | None
    activation: Callable[[Array], Array] = eqx.field(static=True)
    out_size: int | Literal["scalar"] = eqx.field(static=True)
    parameterization: Literal["nth", "ntk", "standard"] = eqx.field(static=True)
    # Forward-pass scales of each layer: (weight, bias, activation).
    scales: tuple[tuple[float, float, float], ...] = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        width: int,
        depth: int,
        *,
        out_size: int | Literal["scalar"] = "scalar",
        activation: str | Callable[[Array], Array] = "tanh",
        parameterization: Literal["nth", "ntk", "standard"] = "nth",
        use_bias: bool = False,
        sigma_w: Any = 1.0,
        sigma_a: Any = 1.0,
        sigma_b: Any = 1.0,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        in_size = require_integer("in_size", in_size, 1)
        width = require_integer("width", width, 1)
        reason = "as every layer is compiled separately"
        depth = require_integer("depth", depth, 1, _MOST_LAYERS, reason)
        if out_size != "scalar":
            out_size = require_integer('out_size, if not "scalar",', out_size, 1)
        require_name("parameterization", parameterization, ("nth", "ntk", "standard"))
        given = {"sigma_w": sigma_w, "sigma_a": sigma_a, "sigma_b": sigma_b}
        sizes = [in_size, *[width] * depth, 1 if out_size == "scalar" else out_size]
        fans = list(pairwise(sizes))
        scales = _scales_of(parameterization, given, fans)
        use_bias = require_bool("use_bias", use_bias)
        dtype = _float_dtype(dtype)
        numbers = sum((fan_in + 1) * fan_out for fan_in, fan_out in fans)
        needed = 2 * numbers * dtype.itemsize  # unscaled and scaled copies
        purpose = f"drawing {numbers:,} parameters"
        require_memory("width and depth", purpose, needed, "Give a smaller number.")
        keys = jax.random.split(require_key("key", key), depth + 1)
        drawn = [
            _draw(layer_key, *fan, scale, dtype)
            for layer_key, fan, scale in zip(keys, fans, scales, strict=True)
        ]
        self.weights = tuple(w for w, _ in drawn)
        self.biases = tuple(b for _, b in drawn) if use_bias else None
        self.activation = as_activation(activation)
        self.out_size = out_size
        self.parameterization = parameterization
        self.scales = tuple((s.weight, s.bias, s.activation) for s in scales)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, "..."]:
        """f(θ, x), of shape `()` or `(out_size,)`."""
        in_size, shape = self.weights[0].shape[1:], getattr(x, "shape", None)
        if shape != in_size:
            got = repr(x) if shape is None else shape
            raise ValueError(f"x must have shape {in_size}, (in_size,); got {got}.")
        for layer, (weight, bias, activation) in enumerate(self.scales):
            x = weight * (self.weights[layer] @ x)
            if self.biases is not None:
                x = x + bias * self.biases[layer]
            if layer < len(self.scales) - 1:
                x = activation * self.activation(x)
        return x[0] if self.out_size == "scalar" else x
