"""Checks that a network is a function of its parameters and one input."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import Params
from .._internal.validation import is_traced
from .._internal.warnings import warn
from .._problem.inputs import count, join, take
from .._problem.problem import Problem
from .adapters import ApplyNetwork, NNXNetwork


def refuse_randomness_and_state(network: Any) -> None:
    normalized = (eqx.nn.BatchNorm, eqx.nn.SpectralNorm)
    kinds = (eqx.nn.Dropout, *normalized, eqx.nn.StateIndex)
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
                "change, but it must be a function of its parameters only. Use a "
                "layer without state (LayerNorm, GroupNorm), or switch it off with "
                "eqx.nn.inference_mode(network) and close over its state."
            )


def refuse_changing_state(network: Any, x: Any) -> None:
    """Raise `ValueError` if a call changes a variable of an NNX network."""
    if not isinstance(network, NNXNetwork):
        return
    changed = []

    def call(network: NNXNetwork, x: Any) -> None:
        _, before, after = network.with_state_after(x)
        kept = len(before) == len(after)
        pairs = zip(before, after, strict=False)
        changed.append(not kept or any(a is not b for a, b in pairs))

    try:
        eqx.filter_eval_shape(call, network, x)
    except Exception:  # raised again, with more context, by `_output_of`
        return
    if changed[0]:
        raise ValueError(
            "network changes its own variables when it is called, as dropout and "
            "BatchNorm in training mode do, but it must be a function of its "
            "parameters only. Switch them off with network.eval()."
        )


def refuse_mixed_points(network: Any, problem: Problem) -> None:
    """Raise `ValueError` if a batched function mixes the points of a batch."""
    batched = isinstance(network, ApplyNetwork) and network.batched
    if not batched or is_traced(network, problem):
        return
    x = take(problem.x, slice(0, 3))
    if count(x) == 1:  # add any second point of the same dtype
        x = join(x, jax.tree.map(_different, x))
    try:
        together = network.apply_fn(network.params, x)
    except Exception as error:
        raise ValueError(
            f"network failed on a batch of {count(x)} points, though batched=True; it "
            f"must accept any number of them. Error: {error}"
        ) from error
    alone = jnp.stack([network(take(x, i)) for i in range(count(x))])
    scale = jnp.max(jnp.abs(alone))
    tolerance = jnp.finfo(alone.dtype).eps ** 0.5 * (1 + scale)
    same = together.shape == alone.shape
    if not same or not bool(jnp.max(jnp.abs(together - alone)) <= tolerance):
        raise ValueError(
            "network has different outputs for a point in a batch and for the point "
            "alone, so with batched=True it is not a function of one input: batch "
            "normalization in training mode, for instance. Use running statistics, "
            "such as use_running_average=True, or a layer that normalizes each point "
            "separately."
        )


def _different(leaf: Array) -> Array:
    return leaf / 2 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def warn_of_statistics(network: Any, params: Params) -> None:
    """Warn if arrays that the framework declares as non-parameters are trained."""
    names = _statistics(network, params)
    if names:
        warn(
            f"network: {', '.join(names)} would be trained, but their collection "
            "marks them as statistics, not parameters. Freeze them with filter_spec, "
            "or close over them: nth.from_apply(lambda p, x: apply_fn({'params': p, "
            "**rest}, x), variables['params']).",
            UserWarning,
        )


def _statistics(network: Any, params: Params) -> list[str]:
    """The paths of trained arrays that the framework declares as non-parameters."""
    kinds = (eqx.nn.State, eqx.nn.StateIndex)
    nodes = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: isinstance(node, kinds)
    )
    paths = [
        p for p, node in nodes if isinstance(node, kinds) and jax.tree.leaves(node)
    ]
    variables = network.params if isinstance(network, ApplyNetwork) else None
    if isinstance(variables, Mapping) and "params" in variables:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        paths += [p for p, _ in leaves if getattr(p[1], "key", None) != "params"]
    return [jax.tree_util.keystr(path) for path in paths]
