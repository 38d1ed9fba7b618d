"""Networks of other frameworks as Equinox modules."""

import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._internal.validation import require_bool
from .._problem.inputs import take


class ApplyNetwork(eqx.Module):
    params: PyTree
    apply_fn: Callable[..., Any] = eqx.field(static=True)
    batched: bool = eqx.field(static=True)

    def __call__(self, x: Any) -> Array:
        if self.batched:
            outputs = self.apply_fn(self.params, take(x, None))
            if not isinstance(outputs, jax.Array | np.ndarray):
                raise ValueError(
                    "apply_fn must return one array of outputs; it returned "
                    f"{jax.tree.structure(outputs)}. (With Flax's mutable=... the "
                    "outputs are the first element.)"
                )
            return outputs[0]
        return self.apply_fn(self.params, x)


class NNXNetwork(eqx.Module):
    """A `flax.nnx.Module`, split into arrays; a shared weight is a single array."""

    params: PyTree
    others: PyTree
    """Variables other than `nnx.Param`, such as batch statistics; never trained."""
    graphdef: Any = eqx.field(static=True)

    def __call__(self, x: Any) -> Array:
        return self.with_state_after(x)[0]

    def with_state_after(self, x: Any) -> tuple[Array, list[Array], list[Array]]:
        """The output, and `others` before and after the call."""
        nnx = sys.modules["flax.nnx"]
        network = nnx.merge(self.graphdef, self.params, self.others)
        before = jax.tree.leaves(nnx.split(network, nnx.Param, ...)[2])
        output = network(x)
        return output, before, jax.tree.leaves(nnx.split(network, nnx.Param, ...)[2])


def from_apply(
    apply_fn: Callable[..., Any], params: PyTree, *, batched: bool = False
) -> ApplyNetwork:
    """A network from an apply function and its parameters, as in Flax and Haiku.

    **Arguments:**

    - `apply_fn`: `apply_fn(params, x)`, such as a Flax module's `apply`.
    - `params`: a pytree; its floating-point arrays are trained unless a `filter_spec`
        selects others. Its path in the module is `.params`. Leaves that are not arrays
        are passed to `apply_fn` unchanged.
    - `batched`: `False` if `apply_fn` takes one input `(*in)`, `True` if it takes a
        batch `(points, *in)`; it is then called with batches of one point.

    Flax collections other than `"params"`, such as `"batch_stats"`, are not parameters:
    close over them, `from_apply(lambda p, x: apply({"params": p, **rest}, x), ...)`.

    **Returns:** a network of one input, an `eqx.Module`.

    **Raises:** `ValueError` if `apply_fn` is not callable or `batched` is not a bool.
    """
    if not callable(apply_fn):
        raise ValueError(f"apply_fn must be callable; got {apply_fn!r}.")
    batched = require_bool("batched", batched)
    return ApplyNetwork(jax.tree.map(_as_leaf, params), apply_fn, batched)


def _as_leaf(leaf: Any) -> Any:
    if np.ma.isMaskedArray(leaf):
        raise ValueError("params has a masked array: give its .filled(...) values.")
    numbers = (np.ndarray, np.generic, float, complex)
    numeric = isinstance(leaf, numbers) and np.asarray(leaf).dtype.kind in "biufcV"
    return jnp.asarray(leaf) if numeric else leaf


def as_module(network: Any) -> Any:
    """`network`, with a `flax.nnx.Module` split into its parameters and the rest."""
    nnx: Any = sys.modules.get("flax.nnx")  # imported if `network` is an nnx.Module
    if nnx is None or not isinstance(network, nnx.Module):
        return network
    graphdef, params, others = nnx.split(network, nnx.Param, ...)
    return NNXNetwork(params, others, graphdef)
