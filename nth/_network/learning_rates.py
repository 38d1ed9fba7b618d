"""Learning rates of each parameter, in continuous and discrete time: a diagonal
metric M.

Training with rates M is dθ/dt = −M ∇L, so K⁽²⁾ = J M Jᵀ, and the operator D is the
derivative along M ∇f_β.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._custom_types import Params, Scalar
from .._internal.validation import as_array, is_traced, require
from .adapters import as_module


def rates_of(learning_rates: PyTree, network: Any, params: Params) -> Params | None:
    """The rates of each leaf of `params`, with the rank of the leaf; `None` for M = 1.

    **Raises:** `ValueError` if `learning_rates` is not a prefix of the network, or if a
    rate is negative, not finite, or has a shape that does not broadcast to its leaf.
    """
    if learning_rates is None:
        return None
    network = as_module(network)
    try:
        whole = jax.tree.map(
            lambda rate, part: jax.tree.map(lambda _: rate, part),
            learning_rates,
            network,
        )
    except ValueError as error:
        raise ValueError(
            "learning_rates must be a number, or a pytree prefix of numbers over the "
            f"network: {error}"
        ) from None
    return jax.tree.map(
        lambda leaf, rate: None if leaf is None else _rate_of(leaf, rate),
        params,
        whole,
        is_leaf=lambda leaf: leaf is None,
    )


def _rate_of(leaf: Array, rate: Any) -> Array:
    rate = as_array("learning_rates", rate)
    if rate.dtype == jnp.bool_:
        raise ValueError("learning_rates must hold numbers; got dtype bool.")
    rate = rate.astype(leaf.dtype)
    padded = (1,) * (leaf.ndim - rate.ndim) + rate.shape
    if rate.ndim > leaf.ndim or any(
        size not in (1, full) for size, full in zip(padded, leaf.shape, strict=True)
    ):
        raise ValueError(
            f"learning_rates has a rate of shape {rate.shape} for parameters of shape "
            f"{leaf.shape}: give a number, or a shape that broadcasts to it."
        )
    message = "learning_rates must be finite and at least 0."
    rate = require(rate, jnp.isfinite(rate) & (rate >= 0), message)
    return rate if rate.ndim == 0 else rate.reshape(padded)


def by_rates(rates: Params | None, direction: Params) -> Params:
    """M times `direction`."""
    if rates is None:
        return direction
    return jax.tree.map(jnp.multiply, rates, direction)


def with_unit_rates(
    params: Params, rates: Params | None
) -> tuple[Params, Callable[[Params], Params]]:
    """Parameters δ whose learning rates are 1, at initialization, and δ ↦ θ.

    θ = θ₀ + √M δ: derivatives of f in δ are those in θ, times √M in each slot.
    """
    if rates is None:
        return params, lambda params: params
    roots = jax.tree.map(jnp.sqrt, rates)

    def parameters(delta: Params) -> Params:
        return jax.tree.map(lambda p, r, d: p + r * d, params, roots, delta)

    return jax.tree.map(jnp.zeros_like, params), parameters


def as_decay(weight_decay: Any, params: Params) -> Scalar | None:
    """λ in the dtype of `params`; `None` for 0, which needs no additional state."""
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return None
    with np.errstate(over="ignore"):
        decay = jnp.asarray(weight_decay, jax.tree.leaves(params)[0].dtype)
    message = f"weight_decay does not fit {decay.dtype}, the dtype of the parameters."
    return require(decay, jnp.isfinite(decay), f"{message} Give a smaller number.")


def overflow_by_rates(rates: Params | None, power: int) -> str | None:
    """The message if a product of `power` rates nearly overflows, otherwise `None`."""
    leaves = jax.tree.leaves(rates)
    if not leaves or is_traced(leaves):
        return None
    largest = max(float(jnp.max(leaf, initial=0)) for leaf in leaves)
    dtype = leaves[0].dtype
    if power * math.log(max(largest, 1)) < math.log(float(jnp.finfo(dtype).max)) / 2:
        return None
    return (
        f"learning_rates of {largest:.3g} are too large for {dtype}. Give smaller ones:"
        " a common factor of all of them only changes the unit of time."
    )
