"""K⁽³⁾ of any network, from derivatives of its gradients.

With v_ac = H_a M ∇f_c, the derivative of ∇f_a along the direction of slot c,

    K⁽³⁾[a, b, c] = v_ac · M ∇f_b + ∇f_a · M v_bc.

For training slots a and b the second term is the first with a and b exchanged, so half
of the products suffice. The gradients and their inner products are those of K⁽²⁾.
Where most gradients do not stay factored, `local_third` takes less time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs, Params
from .._problem.inputs import count
from .evaluation import Points
from .factored_gradients import GradientFunction
from .gradient_products import Gradients, products
from .hierarchy_operator import SlotGradient, TensorFunction, slot_gradient

# Maximum bytes of the gradients and their derivatives held at once, and what they take
# if several columns fit: more columns leave the cache.
_BLOCK_BYTES = 2**28
_FAST_BYTES = 2**26

Direction = Params
Column = Callable[[Direction], Float[Array, "rows slots"]]


def slots_at_once(points: Points, r: int) -> int:
    """The number of columns of K⁽³⁾, r − 3 times differentiated, to compute at once; 0
    if none fits in `_BLOCK_BYTES`."""
    gradients = GradientFunction(points, points.n_train)
    n_all = points.n_train + count(points.x_extra)
    pairs = n_all * points.n_train * gradients.bytes_per_pair(points)
    each = n_all * gradients.bytes_per_point(points) + pairs
    each <<= r - 2
    if each > _BLOCK_BYTES:
        return 0
    return min(points.n_slots, max(1, _FAST_BYTES // each))


class ThirdProducts(eqx.Module):
    """Columns of K⁽³⁾, of which `together` are computed at once."""

    together: int = eqx.field(static=True)

    def __call__(
        self, points: Points, start: Int[Array, ""], size: int
    ) -> Float[Array, "rows slots columns"]:
        slots = start + jnp.arange(size)
        return self._columns(points, points.params, slots)

    def tensor(self, points: Points) -> TensorFunction:
        """θ ↦ K⁽³⁾."""
        slots = jnp.arange(points.n_slots)
        return lambda params: self._columns(points, params, slots)

    def _columns(
        self, points: Points, params: Params, slots: Int[Array, " columns"]
    ) -> Float[Array, "rows slots columns"]:
        column, gradient = _column(points, params)
        return _over_slots(
            lambda slot: column(gradient(params, slot)), slots, self.together
        )


def _over_slots(
    column: Callable[[Array], Float[Array, "rows slots"]],
    slots: Int[Array, " columns"],
    size: int,
) -> Float[Array, "rows slots columns"]:
    """Columns at `slots`, `size` of them at once."""
    if size >= len(slots):
        return jax.vmap(column, out_axes=-1)(slots)
    return jnp.moveaxis(jax.lax.map(column, slots, batch_size=size), 0, -1)


def _column(points: Points, params: Params) -> tuple[Column, SlotGradient]:
    """The column of K⁽³⁾ along one direction, and slot ↦ direction."""
    gradients = GradientFunction(points, points.n_train)
    rated = partial(gradients.times_rates, rates=points.rates)
    train, move_train = _linearized(gradients, params, points.x_train)
    columns = rated(train)
    extra = None
    if count(points.x_extra):
        extra = _linearized(gradients, params, points.x_extra)

    def column(direction: Direction) -> Float[Array, "rows slots"]:
        moved = move_train(direction)
        parts = []
        if points.with_train:
            half = _derivative(lambda rows: products(rows, columns), train, moved)
            parts.append(half + half.T)
        if extra is not None:
            rows, move_rows = extra
            parts.append(
                _derivative(
                    lambda both: products(both[0], rated(both[1])),
                    (rows, train),
                    (move_rows(direction), moved),
                )
            )
        return jnp.concatenate(parts)

    return column, slot_gradient(points.apply, points.x_train, points.rates)


def _linearized(
    gradients: GradientFunction, params: Params, x: Inputs
) -> tuple[Gradients, Callable[[Direction], Any]]:
    """Gradients at `x`, and direction ↦ the derivatives of their floating parts."""
    whole = gradients.over(params, x)
    fixed = eqx.filter(whole, eqx.is_inexact_array, inverse=True)

    def floating(params: Params) -> Any:
        return eqx.filter(gradients.over(params, x), eqx.is_inexact_array)

    values, move = jax.linearize(floating, params)
    return eqx.combine(values, fixed), move


def _derivative(
    function: Callable[[Any], Array], at: Any, tangents: Any
) -> Float[Array, "rows slots"]:
    """The derivative of `function` along tangents of the floating arrays of `at`."""
    floating, fixed = eqx.partition(at, eqx.is_inexact_array)

    def of_floating(floating: Any) -> Array:
        return function(eqx.combine(floating, fixed))

    return jax.jvp(of_floating, (floating,), (tangents,))[1]
