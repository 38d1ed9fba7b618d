"""Networks: a module and its trainable part become f(θ, x)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from ._errors import (
    is_traced,
    placed_by_compiler,
    require_finite,
    require_instance,
)
from ._problem import Problem
from ._types import Params


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
    network = jax.tree.map(_placed, network)
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


def _placed(leaf: Any) -> Any:
    return placed_by_compiler(leaf) if isinstance(leaf, jax.Array) else leaf


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
