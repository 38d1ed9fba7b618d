"""Gradients in factored form at a set of points, and their inner products."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The pairs of outputs in the two slots of a kernel: all of them, those of an output
# with itself, or the sum of these.
Pairing: TypeAlias = Literal["full", "diagonal", "trace"]
PAIRINGS: tuple[Pairing, ...] = ("full", "diagonal", "trace")


class Factors(eqx.Module):
    """Gradients by one parameter at some points, for each output of the network."""

    data: Float[Array, "*points groups positions fan_in"]
    deltas: Float[Array, "*points out groups positions fan_out"]


class Lookups(eqx.Module):
    """Gradients by a table of `n_rows` rows, of which each point looks up some."""

    rows: Int[Array, "*points positions"]
    deltas: Float[Array, "*points out positions fan_out"]
    n_rows: int = eqx.field(static=True)


class Gradients(eqx.Module):
    """Gradients of outputs at some points by all parameters.

    `whole` are those that are not factored: those of short vectors, such as biases,
    side by side in the first array, then the others.
    """

    whole: tuple[Float[Array, "*points out _"], ...]
    factors: tuple[Factors, ...]
    lookups: tuple[Lookups, ...]

    def __len__(self) -> int:
        return len(self.whole[0])


def products(rows: Gradients, columns: Gradients) -> Float[Array, "rows columns"]:
    """Inner products over parameters, with slots in row order of `(points, out)`."""
    out_size = rows.whole[0].shape[1]
    slots = (len(rows) * out_size, len(columns) * out_size)
    total = jnp.zeros(slots, rows.whole[0].dtype)
    for row, column in zip(rows.whole, columns.whole, strict=True):
        if row.shape[2]:
            # XLA copies the transpose of an operand of three axes.
            total = total + row.reshape(slots[0], -1) @ column.reshape(slots[1], -1).T
    for row, column in zip(rows.factors, columns.factors, strict=True):
        total = total + _of_factors(row, column).reshape(slots)
    for row, column in zip(rows.lookups, columns.lookups, strict=True):
        total = total + _of_lookups(row, column).reshape(slots)
    return total


def _diagonal(rows: Gradients, columns: Gradients) -> Float[Array, "rows columns out"]:
    """Inner products of the gradients of each output with itself."""

    def of_output(row: list[Array], column: list[Array]) -> Array:
        first, second = (
            _with_outputs(whole, [part[:, None] for part in parts])
            for whole, parts in ((rows, row), (columns, column))
        )
        return products(first, second)

    mapped = jax.vmap(of_output, in_axes=1, out_axes=2)
    return mapped(_by_outputs(rows), _by_outputs(columns))


def _trace(rows: Gradients, columns: Gradients) -> Float[Array, "rows columns"]:
    """Their sum over outputs: outputs and parameters are summed over together."""

    def summed(gradients: Gradients) -> Gradients:
        parts = [jnp.moveaxis(part, 1, -2) for part in _by_outputs(gradients)]
        parts = [part.reshape(*part.shape[:-2], -1)[:, None] for part in parts]
        return _with_outputs(gradients, parts)

    return products(summed(rows), summed(columns))


def _by_outputs(gradients: Gradients) -> list[Array]:
    """The arrays that have an axis of outputs, after that of the points."""
    factored = (*gradients.factors, *gradients.lookups)
    return [*gradients.whole, *(part.deltas for part in factored)]


def _with_outputs(gradients: Gradients, parts: list[Array]) -> Gradients:
    """`gradients` with other arrays in place of those of `_by_outputs`."""
    left = iter(parts)
    return Gradients(
        tuple(next(left) for _ in gradients.whole),
        tuple(Factors(part.data, next(left)) for part in gradients.factors),
        tuple(Lookups(p.rows, next(left), p.n_rows) for p in gradients.lookups),
    )


def _of_factors(a: Factors, b: Factors) -> Float[Array, "a out b out"]:
    """Σ over groups and positions p, q of (δ_ap · δ_bq)(x_ap · x_bq)."""
    x = jnp.einsum("agpk,bgqk->gapbq", a.data, b.data)
    d = jnp.einsum("acgpo,bdgqo->gacpbdq", a.deltas, b.deltas)
    return _summed(d, x[:, :, None, :, :, None])


def _of_lookups(a: Lookups, b: Lookups) -> Float[Array, "a out b out"]:
    """Σ over positions p, q that look up the same row of δ_ap · δ_bq."""
    rows = a.rows[:, :, None, None]
    same = (rows == b.rows[None, None]) & (rows < a.n_rows)
    d = jnp.einsum("acpo,bdqo->acpbdq", a.deltas, b.deltas)
    return _summed(d[None], same.astype(d.dtype)[None, :, None, :, :, None])


def _summed(d: Array, x: Array) -> Float[Array, "a out b out"]:
    if d.shape[0] == d.shape[3] == d.shape[6] == 1:
        return (d * x)[0, :, :, 0, :, :, 0]
    return jnp.sum(d * x, axis=(0, 3, 6))


Product: TypeAlias = Callable[[Gradients, Gradients], Array]
PRODUCTS: dict[Pairing, Product] = {
    "full": products,
    "diagonal": _diagonal,
    "trace": _trace,
}
