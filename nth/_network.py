"""Networks: a module and its trainable part become f(θ, x)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, PyTree, Shaped

from ._activation import as_activation
from ._errors import (
    is_traced,
    require_finite,
    require_instance,
    require_integer,
    require_name,
    require_scale,
)
from ._problem import Problem
from ._types import Params


class _Scales(NamedTuple):
    """Where a parameterisation puts the scale of a layer: the draw or the pass."""

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


class MLP(eqx.Module):
    r"""A fully connected network with `depth` hidden layers of `width` neurons.

    | `parameterization` | layer                                  | drawn from             |
    |--------------------|----------------------------------------|------------------------|
    | `"nth"`            | x⁽ˡ⁾ = σ(W x⁽ˡ⁻¹⁾ + b)/√width, f = aᵀx⁽ᴴ⁾ + b | W ~ N(0, σ_w²), a ~ N(0, σ_a²), b ~ N(0, σ_b²) |
    | `"ntk"`            | z = σ W x/√fan_in + σ_b b              | W, b ~ N(0, 1)         |
    | `"standard"`       | z = W x + b                            | W ~ N(0, σ²/fan_in), b ~ N(0, σ_b²) |

    with σ = `sigma_w` in hidden layers and `sigma_a` in the last. `"nth"` is eqs. 1–2
    of Huang & Yau (2020), who have no bias; `"ntk"` is that of Jacot et al. (2018).

    **Arguments:**

    - `in_size`: the size of one input, which has shape `(in_size,)`.
    - `width`, `depth`: neurons in each hidden layer, and how many such layers (≥ 1).
    - `out_size`: `"scalar"` for outputs of shape `()`, or C for `(C,)`.
    - `activation`: a name (`"tanh"`, `"erf"`, `"relu"`, `"gelu"`, `"sigmoid"`,
        `"softplus"`, `"sin"`, `"linear"`) or any elementwise function.
    - `use_bias`, `sigma_w`, `sigma_a`, `sigma_b`: as in the table.
    - `dtype`: of the parameters; JAX's default float if left out.
    - `key`: the random key that the parameters are drawn with.

    **Raises:** `ValueError` for an unknown name, a size below 1 or a bad scale.
    """  # noqa: E501

    weights: tuple[Float[Array, "fan_out fan_in"], ...]
    biases: tuple[Float[Array, " fan_out"], ...] | None
    activation: Callable[[Array], Array] = eqx.field(static=True)
    out_size: int | Literal["scalar"] = eqx.field(static=True)
    # Of each layer in the forward pass: (weight, bias, activation).
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
        depth = require_integer("depth", depth, 1)
        if out_size != "scalar":
            out_size = require_integer('out_size, if not "scalar",', out_size, 1)
        require_name("parameterization", parameterization, ("nth", "ntk", "standard"))
        sigma_w = require_scale("sigma_w", sigma_w)
        sigma_a = require_scale("sigma_a", sigma_a)
        sigma_b = require_scale("sigma_b", sigma_b)
        if parameterization == "ntk" and is_traced(sigma_w, sigma_a, sigma_b):
            raise ValueError(
                'sigma_w, sigma_a and sigma_b stand in the forward pass of "ntk" and '
                "must be numbers there; differentiate with respect to a weight scale "
                'with "nth" or "standard", or scale the outputs.'
            )
        dtype = jnp.result_type(float) if dtype is None else dtype
        last = 1 if out_size == "scalar" else out_size
        fans = [in_size, *[width] * depth, last]
        weights, biases, forward = [], [], []
        for layer, layer_key in enumerate(jax.random.split(key, depth + 1)):
            fan_in, fan_out = fans[layer : layer + 2]
            sigma = sigma_a if layer == depth else sigma_w
            scales = _scales(parameterization, sigma, sigma_b, fan_in, fan_out)
            w_key, b_key = jax.random.split(layer_key)
            w = jax.random.normal(w_key, (fan_out, fan_in), dtype)
            b = jax.random.normal(b_key, (fan_out,), dtype)
            weights.append(w * jnp.asarray(scales.weight_std, dtype))
            biases.append(b * jnp.asarray(scales.bias_std, dtype))
            forward.append((scales.weight, scales.bias, scales.activation))
        self.weights = tuple(weights)
        self.biases = tuple(biases) if use_bias else None
        self.activation = as_activation(activation)
        self.out_size = out_size
        self.scales = tuple(forward)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, "..."]:
        """f(θ, x), of shape `()` or `(out_size,)`."""
        if x.shape != (in_size := self.weights[0].shape[1:]):
            raise ValueError(f"x must have shape {in_size}, (in_size,); got {x.shape}.")
        for layer, (weight, bias, activation) in enumerate(self.scales):
            x = weight * (self.weights[layer] @ x)
            if self.biases is not None:
                x = x + bias * self.biases[layer]
            if layer < len(self.scales) - 1:
                x = activation * self.activation(x)
        return x[0] if self.out_size == "scalar" else x


class _Apply(eqx.Module):
    params: PyTree
    apply_fn: Callable[..., Any] = eqx.field(static=True)
    batched: bool = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        if self.batched:
            return self.apply_fn(self.params, x[None])[0]
        return self.apply_fn(self.params, x)


def from_apply(
    apply_fn: Callable[..., Any], params: PyTree, *, batched: bool = False
) -> eqx.Module:
    """A network from a function and its parameters, the pair of Flax and its like.

    **Arguments:**

    - `apply_fn`: `apply_fn(params, x)`, such as a Flax module's `apply`.
    - `params`: a pytree of arrays; those of floating dtype are trained, unless a
        `filter_spec` says otherwise (Flax's `batch_stats` must be frozen). Its path in
        the module is `.params`.
    - `batched`: `False` if `apply_fn` takes one input `(*in)`, `True` if it takes a
        batch `(points, *in)`; it is then given batches of one.

    **Raises:** `ValueError` if `apply_fn` is not callable.
    """
    if not callable(apply_fn):
        raise ValueError(f"apply_fn must be callable; got {apply_fn!r}.")
    return _Apply(jax.tree.map(jnp.asarray, params), apply_fn, batched)


class OutputFunction(eqx.Module):
    """f(θ, x) of one input: a network with its trainable part θ taken out."""

    frozen: PyTree

    def __call__(self, params: Params, x: Shaped[Array, "*in"]) -> Float[Array, "*out"]:
        return eqx.combine(params, self.frozen)(x)

    def over(
        self, params: Params, xs: Shaped[Array, "points *in"]
    ) -> Float[Array, "points *out"]:
        """f(θ) on many inputs, one by one: nothing couples them."""
        return jax.vmap(self, in_axes=(None, 0))(params, xs)


def parametrize(
    network: Callable[..., Any], problem: Problem, filter_spec: PyTree
) -> tuple[OutputFunction, Params, Problem]:
    """f(θ, x), θ, and `problem` with its targets checked against the outputs.

    **Raises:** `ValueError` if the network has dropout or state switched on, nothing to
    train, another dtype than the data, or outputs that do not fit inputs or targets.
    """
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    if not callable(network):
        raise ValueError(
            f"network must be an eqx.Module of one input, or nth.from_apply(...); got "
            f"{network!r}."
        )
    _refuse_randomness_and_state(network)
    try:
        params, frozen = eqx.partition(network, filter_spec)
    except ValueError as error:
        raise ValueError(
            "filter_spec must be a function of a leaf, or a pytree prefix of booleans "
            f"over the network: {error}"
        ) from None
    params = _checked_params(params, problem)
    apply = OutputFunction(frozen)
    return apply, params, problem.matched_to(_output_of(apply, params, problem))


def _refuse_randomness_and_state(network: Any) -> None:
    normalised = (eqx.nn.BatchNorm, eqx.nn.SpectralNorm)
    kinds = (eqx.nn.Dropout, *normalised, eqx.nn.StateIndex)
    for layer in jax.tree.leaves(network, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(layer, eqx.nn.Dropout):
            if layer.p > 0 and not layer.inference:
                raise ValueError(
                    "network has dropout switched on, so its outputs are random: "
                    "switch it off with eqx.nn.inference_mode(network)."
                )
        elif isinstance(layer, kinds) and not getattr(layer, "inference", False):
            raise ValueError(
                f"network has state ({type(layer).__name__}) that training would "
                "change: the hierarchy is of a function of parameters alone. Use a "
                "layer without state (LayerNorm, GroupNorm), or switch it with "
                "eqx.nn.inference_mode(network) and close over its state."
            )


def _checked_params(params: Params, problem: Problem) -> Params:
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError(
            "network has no trainable array under filter_spec: choose at least one (a "
            "function and its parameters become a network by nth.from_apply)."
        )
    for leaf in leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not eqx.is_inexact_array(leaf) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"filter_spec chooses a leaf of type {dtype} for training: only "
                "real floating arrays can be trained."
            )
        data = problem.x_train.dtype
        if dtype != (data if jnp.issubdtype(data, jnp.floating) else leaves[0].dtype):
            raise ValueError(
                f"network has parameters of dtype {dtype} and x_train has {data}: "
                "cast one of them, for instance x_train.astype(...), or all points."
            )
    if is_traced(params):
        return params
    return jax.tree.map(
        partial(require_finite, "network", cure="draw it anew."), params
    )


def _output_of(
    apply: OutputFunction, params: Params, problem: Problem
) -> jax.ShapeDtypeStruct:
    x = problem.x_train[0]
    try:
        output = eqx.filter_eval_shape(apply, params, x)
    except Exception as error:
        raise ValueError(
            f"network failed on one input of x_train, of shape {x.shape} and dtype "
            f"{x.dtype}; it must map one input to one output (no batch axis, no key, "
            f"no state). It said: {error}"
        ) from error
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise ValueError(
            "network must map one input to one array; it returned "
            f"{jax.tree.structure(output)}."
        )
    if output.dtype != jax.tree.leaves(params)[0].dtype:
        raise ValueError(
            f"network has outputs of dtype {output.dtype} and parameters of dtype "
            f"{jax.tree.leaves(params)[0].dtype}: they must be equal."
        )
    return output
