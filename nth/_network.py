"""Networks: a module and its trainable part become f(θ, x)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._errors import (
    is_traced,
    placed_by_compiler,
    require_finite,
    require_instance,
)
from ._inputs import floating_dtype, layout, take
from ._modules import NNXNetwork, as_module
from ._network_checks import (
    refuse_changing_state,
    refuse_mixed_points,
    refuse_randomness_and_state,
    warn_of_statistics,
)
from ._problem import Problem
from ._types import Inputs, Params


class OutputFunction(eqx.Module):
    """f(θ, x) of one input: a network with its trainable part θ taken out.

    Leaves that are no arrays, such as activation functions, are static, so that any
    transformation of JAX takes it.
    """

    frozen: PyTree[Array]
    static: Any = eqx.field(static=True)

    def __init__(self, frozen: PyTree):
        self.frozen, rest = eqx.partition(frozen, _is_array)
        leaves, treedef = jax.tree.flatten(rest, is_leaf=lambda leaf: leaf is None)
        try:
            hash(tuple(leaves))
        except TypeError as error:
            kinds = {type(leaf).__name__ for leaf in leaves if _is_unhashable(leaf)}
            raise ValueError(
                f"network has a leaf of type {', '.join(sorted(kinds))}, which cannot "
                f"be hashed ({error}): hold it in a static field, or as an array."
            ) from None
        self.static = (treedef, tuple(leaves))

    def network(self, params: Params) -> Any:
        """The network at the parameters `params`."""
        treedef, leaves = self.static
        rest = jax.tree.unflatten(treedef, leaves)
        return eqx.combine(params, self.frozen, rest)

    def __call__(self, params: Params, x: Any) -> Float[Array, "*out"]:
        return self.network(params)(x)

    def over(self, params: Params, xs: Inputs) -> Float[Array, "points *out"]:
        """f(θ) on many inputs, each alone."""
        return jax.vmap(self, in_axes=(None, 0))(params, xs)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _is_unhashable(leaf: Any) -> bool:
    try:
        hash(leaf)
    except TypeError:
        return True
    return False


def parametrize(
    network: Callable[..., Any], problem: Problem, filter_spec: PyTree
) -> tuple[OutputFunction, Params, Problem]:
    """f(θ, x), θ, and `problem` with its targets checked against the outputs.

    **Raises:** `ValueError` if the network has dropout or state switched on, mixes the
    points of a batch, has nothing to train, another dtype than the data, or outputs
    that do not fit inputs or targets.
    """
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    network = as_module(network)
    if not callable(network):
        raise ValueError(
            "network must be an eqx.Module of one input, a flax.nnx.Module, or "
            f"nth.from_apply(apply_fn, params); got {network!r}."
        )
    refuse_randomness_and_state(network)
    network = jax.tree.map(_placed, network)
    params, frozen = _partitioned(network, filter_spec)
    warn_of_statistics(network, params)
    params = _checked_params(params, problem)
    apply = OutputFunction(frozen)
    output = _output_of(apply, params, problem)
    refuse_changing_state(network, take(problem.x_train, 0))
    refuse_mixed_points(network, problem)
    return apply, params, problem.matched_to(output)


def _placed(leaf: Any) -> Any:
    return placed_by_compiler(leaf) if isinstance(leaf, jax.Array) else leaf


def _partitioned(network: Any, filter_spec: PyTree) -> tuple[Params, PyTree]:
    """What trains, and the rest."""
    try:
        params, frozen = eqx.partition(network, filter_spec)
    except ValueError as error:
        raise ValueError(
            "filter_spec must be a function of a leaf, or a pytree prefix of booleans "
            f"over the network; got {filter_spec!r}: {error}"
        ) from None
    if isinstance(network, NNXNetwork):
        none = jax.tree.map(lambda _: None, params.others)
        params = NNXNetwork(params.params, none, network.graphdef)
        frozen = NNXNetwork(frozen.params, network.others, network.graphdef)
    return params, frozen


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
        data = floating_dtype(problem.x_train)
        if dtype != (leaves[0].dtype if data is None else data):
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
    x = take(problem.x_train, 0)
    try:
        output = eqx.filter_eval_shape(apply, params, x)
    except Exception as error:
        raise ValueError(
            f"network failed on one input of x_train, {layout(x)}; it must map one "
            f"input to one output (no batch axis, no key, no state). It said: {error}"
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
