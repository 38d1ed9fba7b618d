"""K⁽²⁾ of any network as a product of Jacobians, by reverse mode alone."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs, Params
from .._network.base import OutputFunction
from .._network.learning_rates import by_rates
from .._network.memory import activation_bytes, tree_bytes
from .._problem.inputs import count, take
from .evaluation import Points

# Bytes that the gradients held at once may take, unless `block_size` is given.
_BLOCK_BYTES = 2**28


def jacobian_products(
    points: Points, block_size: int
) -> tuple["JacobianProducts", int]:
    """Columns of K⁽²⁾, and how many of them go together: those of whole points."""
    size = points.output.size
    per_point = activation_bytes(
        points.apply, points.params, take(points.x_train, 0)
    ) + size * tree_bytes(points.params)
    rows = max(1, _BLOCK_BYTES // (4 * per_point))
    # Each block of columns computes the gradients of all rows again: it is larger.
    held = max(1, block_size // size) if block_size else 3 * rows
    return JacobianProducts(rows), min(points.n_train, held) * size


class JacobianProducts(eqx.Module):
    """Columns of K⁽²⁾ = J M Jᵀ, from gradients alone.

    `rows` is the number of points in the first slot whose gradients are held at once.
    """

    rows: int = eqx.field(static=True)

    def __call__(
        self, points: Points, start: Int[Array, ""], size: int
    ) -> Float[Array, "rows columns"]:
        number = size // points.output.size
        whole = number == points.n_train
        indices = start // points.output.size + jnp.arange(number)
        x = points.x_train if whole else take(points.x_train, indices)
        columns = jax.vmap(jacobian_of(points.apply, points.params))(x)
        moved = jax.vmap(jax.vmap(partial(by_rates, points.rates)))(columns)
        x = points.x
        above = None
        if whole and points.with_train:  # the columns are rows, too
            above, x = _products(columns, moved), points.x_extra
        below = self._map_rows(points, x, moved)
        return below if above is None else jnp.concatenate([above, below])

    def _map_rows(
        self, points: Points, x: Inputs, columns: Params
    ) -> Float[Array, "rows columns"]:
        jacobian = jacobian_of(points.apply, points.params)

        def block(x: Any) -> Float[Array, "out columns"]:
            one = jax.tree.map(lambda leaf: leaf[None], jacobian(x))
            return _products(one, columns)

        if count(x) == 0:
            slots = jax.tree.leaves(columns)[0].shape[:2]
            return jnp.zeros((0, slots[0] * slots[1]), points.output.dtype)
        products = jax.lax.map(block, x, batch_size=min(self.rows, count(x)))
        return products.reshape(-1, *products.shape[2:])


def jacobian_of(apply: OutputFunction, params: Params) -> Callable[[Any], Params]:
    """x ↦ ∂f(θ, x)/∂θ, the outputs in one leading axis."""

    def jacobian(x: Any) -> Params:
        outputs, pull = jax.vjp(lambda params: apply(params, x), params)
        units = jnp.eye(outputs.size, dtype=outputs.dtype)
        return jax.vmap(pull)(units.reshape(-1, *outputs.shape))[0]

    return jacobian


def push_by_points(
    apply: OutputFunction, params: Params, x: Inputs, direction: Params
) -> Float[Array, "points *out"]:
    """J · `direction`, from the gradients of one point after another.

    No forward mode, and no product of a zero with an infinite slope, as at the point
    x = 0 of a norm, where the gradient itself is finite.
    """
    jacobian = jacobian_of(apply, params)
    moved = jax.tree.map(lambda leaf: leaf[None, None], direction)

    def push(x: Any) -> Float[Array, " outputs"]:
        rows = jax.tree.map(lambda leaf: leaf[None], jacobian(x))
        return _products(rows, moved)[:, 0]

    return jax.lax.map(push, x).reshape(-1, *apply.output.shape)


def _products(rows: Params, columns: Params) -> Float[Array, "rows columns"]:
    """Inner products over parameters; leaves are `(points, outputs, *parameter)`."""

    def of_leaf(row: Array, column: Array) -> Array:
        row, column = (leaf.reshape(*leaf.shape[:2], -1) for leaf in (row, column))
        row, column = (leaf.reshape(-1, leaf.shape[2]) for leaf in (row, column))
        return row @ column.T

    parts: list[Array] = jax.tree.leaves(jax.tree.map(of_leaf, rows, columns))
    return functools.reduce(jnp.add, parts)
