"""Taylor coefficients in ε of a function along θ_ε = θ₀ + Σ_k ε^k u_k.

`by_jet` uses Taylor arithmetic, `jax.experimental.jet`: about K²/2 products in place of
each product. Some of its rules are wrong (those of `rem`, for negative numbers, and of
`pow`), and it ignores derivatives defined by `custom_jvp`. So it is used only where
derivatives pass exclusively through the primitives in `PROVED`, for each of which a
test compares it with `by_jvp`. Elsewhere `by_jvp` nests `jvp`, which supports every
differentiable function but costs more as K grows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Params
from .._internal.jaxpr import differentiated

try:
    from jax.experimental.jet import jet
except ImportError:  # an experimental module may be removed: nested jvp replaces it
    jet = None

# Primitives for which jet is exact up to rounding error; see tests/test_taylor.py.
PROVED = frozenset(
    """
    abs add add_any broadcast_in_dim concatenate conv_general_dilated
    convert_element_type copy cos cosh cumsum div dot_general dynamic_slice
    dynamic_update_slice eq erf erfc exp floor gather ge gt integer_pow is_finite le
    log logistic lt max min mul ne neg pad reduce_max reduce_min reduce_sum reshape rev
    round rsqrt scatter-add select_n sign sin sinh slice split sqrt square squeeze
    stop_gradient sub tanh transpose
    """.split()  # noqa: SIM905
)

Function = Callable[[Params], Float[Array, "..."]]
Coefficients = Callable[[Function, Params, Sequence[Params]], list[Float[Array, "..."]]]


def by_jet(
    function: Function, base: Params, steps: Sequence[Params]
) -> list[Float[Array, "..."]]:
    """[f(θ_ε)]_0, …, [f(θ_ε)]_K for θ₀ = `base` and u_1 … u_K = `steps`."""
    if jet is None:
        raise NotImplementedError("this JAX has no jax.experimental.jet")
    leaves, tree = jax.tree.flatten(base)
    series = list(zip(*(jax.tree.leaves(step) for step in steps), strict=True))

    def flat(*leaves: Array) -> Float[Array, "..."]:
        return function(jax.tree.unflatten(tree, leaves))

    first, rest = jet(flat, leaves, series, factorial_scaled=False)
    return [first, *rest]


def by_jvp(
    function: Function, base: Params, steps: Sequence[Params]
) -> list[Float[Array, "..."]]:
    """The same, as derivatives in ε at 0 over k!; XLA merges repeated computations."""

    def along(eps: Float[Array, ""]) -> tuple[Float[Array, "..."], ...]:
        def point(leaf: Array, *terms: Array) -> Array:
            total, own = jnp.zeros_like(leaf), eps.astype(leaf.dtype)
            for term in reversed(terms):
                total = own * (term + total)
            return leaf + total

        return (function(jax.tree.map(point, base, *steps)),)

    for _ in steps:
        along = _with_slope(along)
    derivatives = along(jnp.zeros((), jax.tree.leaves(base)[0].dtype))
    return [value / math.factorial(k) for k, value in enumerate(derivatives)]


def _with_slope(curve: Callable[..., Any]) -> Callable[..., Any]:
    def more(eps: Float[Array, ""]) -> tuple[Float[Array, "..."], ...]:
        values, slopes = jax.jvp(curve, (eps,), (jnp.ones_like(eps),))
        return (*values, slopes[-1])

    return more


def best_coefficients(function: Function, base: Params) -> Coefficients:
    """`by_jet` if it is known to be exact for `function`, else `by_jvp`."""
    names, _ = differentiated(jax.make_jaxpr(function)(base).jaxpr)
    if not names <= PROVED:
        return by_jvp
    try:
        jax.eval_shape(lambda *u: by_jet(function, base, u), base, base)
    except Exception:  # a missing rule raises KeyError, an incomplete one any error
        return by_jvp
    return by_jet
