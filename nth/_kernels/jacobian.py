"""K⁽²⁾ = J M Jᵀ of any network, from reverse-mode gradients only."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs, Params
from .._network.base import OutputFunction
from .._problem.inputs import count, take
from .evaluation import Points
from .factored_gradients import GradientFunction
from .gradient_products import Gradients, Product

# Maximum bytes of the gradients held at once, unless `block_size` is given.
_BLOCK_BYTES = 2**28
# Minimum slots of a tile of a symmetric product, and the maximum number of tiles, each
# compiled separately: measured on 2 cores.
_TILE_SLOTS = 160
_MOST_TILES = 4


def jacobian_products(
    points: Points, block_size: int
) -> tuple["JacobianProducts", int]:
    """Columns of K⁽²⁾, and the block size, a multiple of the outputs per point."""
    size, n_train = points.output.size, points.n_train
    gradients = GradientFunction(points, n_train)
    per_point = gradients.bytes_per_point(points)
    # Blocks of columns are larger, since each recomputes the gradients of all rows.
    columns = max(1, block_size // size) if block_size else 0
    columns = min(n_train, columns or max(1, 3 * _BLOCK_BYTES // (4 * per_point)))
    per_row = per_point + columns * gradients.bytes_per_pair(points)
    rows = max(1, _BLOCK_BYTES // (4 * per_row))
    return JacobianProducts(rows), columns * size


class JacobianProducts(eqx.Module):
    """Columns of K⁽²⁾ = J M Jᵀ, from gradients only.

    `rows` is the number of points in the first slot whose gradients are held at once.
    """

    rows: int = eqx.field(static=True)

    def __call__(
        self, points: Points, start: Int[Array, ""], size: int
    ) -> Float[Array, "rows columns"]:
        gradients = GradientFunction(points, points.n_train)
        number = size // points.output.size
        first = start // points.output.size
        at = partial(gradients.over, points.params)
        return jacobian_block(points, gradients, at, first, number, self.rows)


def jacobian_block(
    points: Points,
    gradients: GradientFunction,
    at: Callable[[Inputs], Gradients],
    first: Int[Array, ""],
    number: int,
    most: int,
) -> Float[Array, "rows columns *outputs"]:
    """Columns of the kernel, of `number` points from the `first` on.

    `at` gives the gradients at points, which are held for `most` rows at once.
    """
    whole = number == points.n_train
    indices = first + jnp.arange(number)
    columns = at(points.x_train if whole else take(points.x_train, indices))
    rated = gradients.times_rates(columns, points.rates)
    x, above = points.x, None
    if whole and points.with_train:  # the columns are also rows
        above, x = _symmetric(gradients.products, columns, rated, most), points.x_extra
    if count(x) == 0:
        assert above is not None
        return above
    below = by_rows(lambda x: gradients.products(at(x), rated), x, most)
    return below if above is None else jnp.concatenate([above, below])


def _symmetric(
    products: Product, rows: Gradients, columns: Gradients, most: int
) -> Float[Array, "columns columns *outputs"]:
    """A product that equals its transpose: the tiles above its diagonal."""
    n = len(rows)
    slots = jax.eval_shape(products, rows, columns)
    tiles = min(_MOST_TILES, n, max(1, slots.shape[0] // _TILE_SLOTS))
    tile = -(-n // tiles)
    if tile > most:  # a tile's pairs of factors take too much memory
        return by_rows(lambda one: products(one, columns), rows, most)
    if tile >= n:
        return products(rows, columns)
    total = jnp.zeros(slots.shape, slots.dtype)
    for start in range(0, n, tile):
        below = products(
            take(rows, slice(start, None)),
            take(columns, slice(start, start + tile)),
        )
        corner = (start * slots.shape[0] // n,) * 2 + (0,) * (slots.ndim - 2)
        total = jax.lax.dynamic_update_slice(total, below, corner)
        above = jnp.swapaxes(below, 0, 1)
        total = jax.lax.dynamic_update_slice(total, above, corner)
    return total


def by_rows(
    block: Callable[[Any], Float[Array, "rows columns *outputs"]], xs: Any, size: int
) -> Float[Array, "rows columns *outputs"]:
    """The rows that `block` computes from `xs`, `size` entries at a time."""
    n = count(xs)
    if n <= size:
        return block(xs)
    one = jax.lax.map(
        lambda x: block(jax.tree.map(lambda leaf: leaf[None], x)), xs, batch_size=size
    )
    return one.reshape(-1, *one.shape[2:])


def tangent_maps(
    apply: OutputFunction, params: Params, x: Inputs
) -> tuple[Float[Array, "points *out"], Callable[[Array], Params], Callable[..., Any]]:
    """The outputs, and the products with Jᵀ and with J.

    J transposes reverse mode, since a function may have no forward-mode derivative.
    """
    outputs, pull = jax.vjp(lambda params: apply.over(params, x), params)
    transpose = jax.linear_transpose(pull, outputs)

    def push(direction: Params) -> Float[Array, "points *out"]:
        return transpose((direction,))[0]

    return outputs, lambda vector: pull(vector)[0], push


def jacobian_of(apply: OutputFunction, params: Params) -> Callable[[Any], Params]:
    """x ↦ ∂f(θ, x)/∂θ, with the outputs along the leading axis."""

    def jacobian(x: Any) -> Params:
        outputs, pull = jax.vjp(lambda params: apply(params, x), params)
        units = jnp.eye(outputs.size, dtype=outputs.dtype)
        return jax.vmap(pull)(units.reshape(-1, *outputs.shape))[0]

    return jacobian


def push_by_points(
    apply: OutputFunction, params: Params, x: Inputs, direction: Params
) -> Float[Array, "points *out"]:
    """J · `direction`, from gradients computed one point at a time.

    It needs no forward mode, and multiplies no zero by an infinite slope, as `jax.jvp`
    does for a norm at x = 0, where the gradient itself is finite.
    """
    jacobian = jacobian_of(apply, params)

    def push(x: Any) -> Float[Array, " outputs"]:
        parts = jax.tree.map(
            lambda row, moved: row.reshape(len(row), -1) @ moved.reshape(-1),
            jacobian(x),
            direction,
        )
        return reduce(jnp.add, jax.tree.leaves(parts))

    return jax.lax.map(push, x).reshape(-1, *apply.output.shape)
