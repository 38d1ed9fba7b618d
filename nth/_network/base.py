"""Networks as functions f(θ, x) of their trainable part and an input."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._custom_types import Inputs, Params
from .._internal.static import Static
from .._internal.validation import (
    is_traced,
    placed_by_compiler,
    require_finite,
    require_instance,
    require_supported_dtype,
)
from .._problem.inputs import floating_dtype, layout, take
from .._problem.problem import Problem
from .adapters import NNXNetwork, as_module
from .checks import (
    refuse_changing_state,
    refuse_mixed_points,
    refuse_randomness_and_state,
    warn_of_statistics,
)
from .learning_rates import rates_of


class OutputFunction(eqx.Module):
    """f(θ, x) of one input: a network without its trainable part θ.

    Leaves that are not arrays, such as activation functions, are static, so it works
    under all JAX transformations.
    """

    frozen: PyTree[Array]
    static: Static = eqx.field(static=True)
    output: jax.ShapeDtypeStruct = eqx.field(static=True)
    """The shape and dtype of one output."""

    def __init__(self, frozen: PyTree, output: jax.ShapeDtypeStruct):
        self.output = output
        self.frozen, rest = eqx.partition(frozen, _is_array)
        self.static = Static(rest)
        if kinds := {type(leaf) for leaf in jax.tree.leaves(rest) if _unhashable(leaf)}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"network has a leaf of type {names}, which cannot be hashed: make it "
                "a static field, or an array."
            )

    def network(self, params: Params) -> Any:
        """The network with parameters `params`."""
        return eqx.combine(params, self.frozen, self.static.tree)

    def __call__(self, params: Params, x: Any) -> Float[Array, "*out"]:
        return self.network(params)(x)

    def over(self, params: Params, xs: Inputs) -> Float[Array, "points *out"]:
        """f(θ, x) for each input x of `xs`."""
        return jax.vmap(self, in_axes=(None, 0))(params, xs)


def _is_array(leaf: Any) -> bool:
    kinds = (np.ndarray, np.generic)
    numeric = isinstance(leaf, kinds) and leaf.dtype != np.dtype(object)
    return isinstance(leaf, jax.Array) or numeric


def _unhashable(leaf: Any) -> bool:
    try:
        hash(leaf)
    except TypeError:
        return True
    return False


class TrainableNetwork(eqx.Module):
    """A network, checked for a problem and split; made once in each public function.

    Functions and dynamics that take a network also take a `TrainableNetwork`, which
    then determines `filter_spec` and `learning_rates`.
    """

    apply: OutputFunction
    params: Params
    """θ, the trainable arrays."""

    rates: Params | None
    """Learning rates M of each parameter; `None` for M = 1."""

    problem: Problem
    """The problem, with its targets checked against the outputs."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of parameters, outputs and times."""
        return np.dtype(self.apply.output.dtype)

    def __call__(self, x: Any) -> Float[Array, "*out"]:
        return self.apply(self.params, x)


def trainable(
    network: Callable[..., Any],
    problem: Problem,
    filter_spec: PyTree,
    learning_rates: PyTree = None,
) -> TrainableNetwork:
    """The network, split into trainable parameters and the rest, and checked.

    **Raises:** `ValueError` if the network has active dropout or state, mixes the
    points of a batch, has no trainable parameters, has a dtype other than that of the
    data, or has outputs that do not match the targets; or if `learning_rates` do not
    match the network.
    """
    if isinstance(network, TrainableNetwork):
        return network
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    module = as_module(network)
    if not callable(module):
        raise ValueError(
            "network must be an eqx.Module of one input, a flax.nnx.Module, or "
            f"nth.from_apply(apply_fn, params); got {module!r}."
        )
    refuse_randomness_and_state(module)
    module = jax.tree.map(_placed, module)
    params, frozen = _partitioned(module, filter_spec)
    warn_of_statistics(module, params)
    params = _checked_params(params, problem)
    refuse_changing_state(module, take(problem.x_train, 0))
    output = _output_of(params, frozen, problem)
    refuse_mixed_points(module, problem)
    return TrainableNetwork(
        apply=OutputFunction(frozen, output),
        params=params,
        rates=rates_of(learning_rates, network, params),
        problem=problem.matched_to(output),
    )


def _placed(leaf: Any) -> Any:
    return placed_by_compiler(leaf) if isinstance(leaf, jax.Array) else leaf


def _partitioned(network: Any, filter_spec: PyTree) -> tuple[Params, PyTree]:
    """The trainable part, and the rest."""
    try:
        params, frozen = eqx.partition(network, filter_spec)
    except Exception as error:  # a user's function may raise anything
        raise ValueError(
            "filter_spec must be a function of a leaf, or a pytree prefix of booleans "
            f"over the network; got {filter_spec!r}: {error}"
        ) from error
    if isinstance(network, NNXNetwork):
        none = jax.tree.map(lambda _: None, params.others)
        params = NNXNetwork(params.params, none, network.graphdef)
        frozen = NNXNetwork(frozen.params, network.others, network.graphdef)
    return params, frozen


def _checked_params(params: Params, problem: Problem) -> Params:
    leaves = jax.tree.leaves(params)
    if not any(getattr(leaf, "size", 1) for leaf in leaves):
        raise ValueError(
            "network has no trainable array under filter_spec: choose at least one (a "
            "function and its parameters become a network by nth.from_apply)."
        )
    for leaf in leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if eqx.is_inexact_array(leaf):
            require_supported_dtype("network", dtype)
        if not eqx.is_inexact_array(leaf) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"filter_spec selects a leaf of type {dtype} for training, but only "
                "real floating arrays can be trained."
            )
        require_supported_dtype("network", dtype)
        data = floating_dtype(problem.x_train)
        if dtype != (leaves[0].dtype if data is None else data):
            raise ValueError(
                f"network has parameters of dtype {dtype} and x_train has {data}: "
                "cast one of them, for instance x_train.astype(...), or all points."
            )
    if is_traced(params):
        return params
    cure = "initialize it again, with scales that fit its dtype."
    return require_finite("network", params, cure)


def _output_of(
    params: Params, frozen: PyTree, problem: Problem
) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one output, traced once for networks of one structure."""
    arrays, static = eqx.partition((params, frozen, problem.x_train), _is_array)
    key = Static((jax.tree.map(_spec, arrays), static))
    try:
        hash(key)
    except TypeError:  # `OutputFunction` raises an error with the cause
        return _traced_output(params, frozen, take(problem.x_train, 0))
    return _output_of_structure(key)


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


@lru_cache(maxsize=64)
def _output_of_structure(key: Static) -> jax.ShapeDtypeStruct:
    arrays, static = key.tree
    params, frozen, xs = eqx.combine(arrays, static)
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    return _traced_output(params, frozen, x)


def _traced_output(params: Params, frozen: PyTree, x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one output, from one trace of outputs and gradients.

    Every method of this package uses reverse mode under `jax.vmap`.
    """

    def value_and_gradient(params: Params, frozen: PyTree, x: Any) -> Any:
        outputs, pull = jax.vjp(lambda params: eqx.combine(params, frozen)(x), params)
        return outputs, pull(jnp.ones_like(outputs))[0]

    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), x
    )
    mapped = eqx.filter_vmap(value_and_gradient, in_axes=(None, None, 0))
    try:
        outputs, _ = eqx.filter_eval_shape(mapped, params, frozen, batch)
        output = jax.ShapeDtypeStruct(outputs.shape[1:], outputs.dtype)
    except Exception as error:
        _check_output(_plain_output(params, frozen, x), params)
        raise ValueError(
            "network has no gradient with respect to its parameters by jax.vjp under "
            "jax.vmap, which every method needs. Replace the function that has none, "
            "for instance jax.lax.while_loop by jax.lax.scan, or give it a "
            f"jax.custom_jvp. Error: {error}"
        ) from error
    return _check_output(output, params)


def _plain_output(params: Params, frozen: PyTree, x: Any) -> Any:
    try:
        return eqx.filter_eval_shape(
            lambda params, frozen, x: eqx.combine(params, frozen)(x), params, frozen, x
        )
    except Exception as error:
        raise ValueError(
            f"network failed on one input of x_train, {layout(x)}; it must map one "
            f"input to one output (no batch axis, no key, no state). Error: {error}"
        ) from error


def _check_output(output: Any, params: Params) -> jax.ShapeDtypeStruct:
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise ValueError(
            "network must map one input to one array; it returned "
            f"{jax.tree.structure(output)}."
        )
    if output.size == 0:
        raise ValueError(
            f"network has outputs of shape {output.shape}, which are empty: it must "
            "have at least one output."
        )
    if output.dtype != jax.tree.leaves(params)[0].dtype:
        raise ValueError(
            f"network has outputs of dtype {output.dtype} and parameters of dtype "
            f"{jax.tree.leaves(params)[0].dtype}: they must be equal."
        )
    return output
