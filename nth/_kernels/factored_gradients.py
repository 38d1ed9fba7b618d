"""Gradients of a network's outputs, in the factored form of each parameter's use.

For a parameter used once, in z = W x at positions p, the gradient Σ_p δ_p x_pᵀ is held
as x and δ, from one forward pass and one backward pass for each output (Novak,
Sohl-Dickstein & Schoenholz 2022, section 3). Every other gradient is held as a whole.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._custom_types import Inputs, Params
from .._network.flat_program import FlatProgram, flat_program, value_of
from .._network.memory import activation_bytes
from .._network.weight_uses import WeightUse, weight_uses
from .._problem.inputs import take
from .evaluation import Points

# Time of an elementwise operation on a number of the kernel, in multiplications of a
# product of matrices.
_ELEMENTWISE = 8
# Parameters of one array up to which its gradients go side by side with others: a
# product of matrices that is this short takes longer to write than to compute.
_SHORT = 512


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

    whole: tuple[Float[Array, "*points out params"], ...]
    factors: tuple[Factors, ...]
    lookups: tuple[Lookups, ...]

    def __len__(self) -> int:
        return len(self.whole[0])


class GradientFunction:
    """x ↦ gradients at one point, read once from the jaxpr of a network.

    `columns` is the number of points in the second slot of the kernel, by which it is
    decided which gradients stay factored.
    """

    def __init__(self, points: Points, columns: int):
        self.out_size = points.output.size
        leaves, structure = jax.tree.flatten(points.params)

        def outputs(leaves: list[Array], x: Any) -> Float[Array, " out"]:
            output = points.apply(jax.tree.unflatten(structure, leaves), x)
            return output.reshape(-1)

        x = take(points.x_train, 0)
        self.program: FlatProgram = flat_program(outputs, leaves, x)
        rates = jax.tree.leaves(points.rates)  # none of them if all are 1
        several = {i for i, rate in enumerate(rates) if rate.size > 1}
        uses = weight_uses(self.program, len(leaves))
        self.uses = [use for use in uses if use.leaf not in several]
        used = {use.leaf for use in self.uses}
        self.others = [i for i in range(len(leaves)) if i not in used]
        self.dtype = points.output.dtype
        self.shapes = [leaf.shape for leaf in leaves]
        self.stay_factored = [
            _pairs_are_cheaper(use, self.out_size, columns) for use in self.uses
        ]

    def __call__(self, params: Params, x: Any) -> Gradients:
        """Gradients at the point `x`, without the axis of points."""
        leaves: list[Array] = jax.tree.leaves(params)

        def outputs(taps: list[Array], free: list[Array]) -> Any:
            own: dict[int, Array] = dict(zip(self.others, free, strict=True))
            inputs = [own.get(i, leaf) for i, leaf in enumerate(leaves)]
            added = {use.output: t for use, t in zip(self.uses, taps, strict=True)}

            def tapped(number: int, value: Array) -> Array:
                return value + added[number] if number in added else value

            values = self.program.run([*inputs, *jax.tree.leaves(x)], tapped)
            (output,) = self.program.outputs
            data = [use.data(value_of(values, use.operand)) for use in self.uses]
            scales = [
                [value_of(values, factor).reshape(()) for factor in use.factors]
                for use in self.uses
            ]
            return value_of(values, output), (data, scales)

        dtype = self.dtype
        taps = [jnp.zeros(self.program.shape(use.output), dtype) for use in self.uses]
        free = [leaves[i] for i in self.others]
        _, pull, (data, scales) = jax.vjp(outputs, taps, free, has_aux=True)
        to_deltas, by_free = jax.vmap(pull)(jnp.eye(self.out_size, dtype=dtype))
        whole = [gradient.reshape(self.out_size, -1) for gradient in by_free]
        factors, lookups = [], []
        for use, stays, x_part, delta, scale in zip(
            self.uses, self.stay_factored, data, to_deltas, scales, strict=True
        ):
            delta = functools.reduce(jnp.multiply, scale, jax.vmap(use.deltas)(delta))
            if not stays:
                whole.append(_formed(use, x_part, delta))
            elif use.is_lookup:
                lookups.append(Lookups(x_part, delta[:, 0], use.sizes[2]))
            else:
                factors.append(Factors(x_part, delta))
        none = jnp.zeros((self.out_size, 0), dtype)
        return Gradients(_gathered([none, *whole]), tuple(factors), tuple(lookups))

    def over(self, params: Params, xs: Inputs) -> Gradients:
        """Gradients at each point of `xs`."""
        return jax.vmap(functools.partial(self, params))(xs)

    def times_rates(self, gradients: Gradients, rates: Params | None) -> Gradients:
        """M times `gradients`."""
        if rates is None:
            return gradients
        by_leaf = jax.tree.leaves(rates)
        used = [use.leaf for use in self.uses]
        kept = {
            is_lookup: [
                by_leaf[use.leaf].reshape(())
                for use, stays in zip(self.uses, self.stay_factored, strict=True)
                if stays and use.is_lookup is is_lookup
            ]
            for is_lookup in (False, True)
        }
        formed = [
            i for i, stays in zip(used, self.stay_factored, strict=True) if not stays
        ]
        of_whole = [
            jnp.broadcast_to(by_leaf[i], self.shapes[i]).reshape(1, -1)
            for i in (*self.others, *formed)
        ]
        none = jnp.zeros((1, 0), of_whole[0].dtype if of_whole else self.dtype)

        def times(parts: Any, own: list[Array]) -> Any:
            return tuple(
                eqx.tree_at(lambda part: part.deltas, part, rate * part.deltas)
                for rate, part in zip(own, parts, strict=True)
            )

        pairs = zip(gradients.whole, _gathered([none, *of_whole]), strict=True)
        return Gradients(
            tuple(part * rate[None] for part, rate in pairs),
            times(gradients.factors, kept[False]),
            times(gradients.lookups, kept[True]),
        )

    def bytes_per_point(self, points: Points) -> int:
        """Bytes of the gradients at one point, and of what reverse mode stores."""
        itemsize = points.output.dtype.itemsize
        activations = activation_bytes(
            points.apply, points.params, take(points.x_train, 0)
        )
        numbers, formed = 0, points.n_params
        for use, stays in zip(self.uses, self.stay_factored, strict=True):
            groups, positions, fan_in, fan_out = use.sizes
            numbers += groups * positions * (fan_in + self.out_size * fan_out)
            formed -= groups * fan_in * fan_out * stays
        # The cotangents of each output take as much as the activations.
        numbers += self.out_size * formed
        return (1 + self.out_size) * activations + numbers * itemsize

    def bytes_per_pair(self, points: Points) -> int:
        """Bytes that products of factors hold for each pair of points."""
        pairs = [
            use.sizes[0] * use.sizes[1] ** 2
            for use, stays in zip(self.uses, self.stay_factored, strict=True)
            if stays
        ]
        numbers = 2 * max(pairs, default=0) * self.out_size**2
        return numbers * points.output.dtype.itemsize


def _pairs_are_cheaper(use: WeightUse, out_size: int, columns: int) -> bool:
    """Whether products of factors take less time than gradients and their products.

    Counted in multiplications for each pair of points.
    """
    groups, positions, fan_in, fan_out = use.sizes
    sums = 0 if use.is_lookup else fan_in
    inner = out_size**2 * (fan_out + _ELEMENTWISE) + sums
    pairs = groups * positions**2 * inner
    size = groups * fan_in * fan_out
    formed = out_size * size * (1 if use.is_lookup else positions) / columns
    return pairs < out_size**2 * size + formed


def _gathered(parts: list[Array]) -> tuple[Array, ...]:
    """The short ones of `parts`, of which the first is empty, as one; the others."""
    short = [part for part in parts if part.shape[1] <= _SHORT]
    others = (part for part in parts if part.shape[1] > _SHORT)
    return jnp.concatenate(short, axis=1), *others


def _formed(use: WeightUse, data: Array, deltas: Array) -> Float[Array, "out params"]:
    """Σ_p δ_p x_pᵀ, for each output."""
    out_size = len(deltas)
    if use.is_lookup:
        table = jnp.zeros((out_size, use.sizes[2], use.sizes[3]), deltas.dtype)
        gradient = table.at[:, data].add(deltas[:, 0], mode="drop")
    else:
        gradient = jnp.einsum("cgpo,gpk->gcok", deltas, data)
        gradient = jnp.moveaxis(gradient, 0, 1)
    return gradient.reshape(out_size, -1)


def products(rows: Gradients, columns: Gradients) -> Float[Array, "rows columns"]:
    """Inner products over parameters, with slots in row order of `(points, out)`."""
    out_size = rows.whole[0].shape[1]
    slots = (len(rows) * out_size, len(columns) * out_size)
    total = jnp.zeros(slots, rows.whole[0].dtype)
    for row, column in zip(rows.whole, columns.whole, strict=True):
        if row.shape[2]:
            product = jnp.tensordot(row, column, axes=(2, 2))
            total = total + product.reshape(slots)
    for row, column in zip(rows.factors, columns.factors, strict=True):
        total = total + _of_factors(row, column).reshape(slots)
    for row, column in zip(rows.lookups, columns.lookups, strict=True):
        total = total + _of_lookups(row, column).reshape(slots)
    return total


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
