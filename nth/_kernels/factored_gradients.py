"""Gradients of a network's outputs, factored by the use of each parameter.

For a parameter used once, in z = W x at positions p, the gradient Σ_p δ_p x_pᵀ is held
as x and δ, from one forward pass and one backward pass for each output (Novak,
Sohl-Dickstein & Schoenholz 2022, section 3). Every other gradient is stored in full.
"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Inputs, Params
from .._network.flat_program import value_of
from .._network.memory import activation_bytes
from .._network.weight_uses import WeightUse, weight_uses
from .._problem.inputs import take
from .evaluation import Points, network_program
from .gradient_products import (
    PRODUCTS,
    Factors,
    Gradients,
    Lookups,
    Pairing,
    Product,
)

# Time of an elementwise operation on an entry of the kernel, in units of one
# multiplication within a product of matrices.
_ELEMENTWISE = 8
# Gradients of arrays with at most this many parameters are concatenated: a product of
# matrices this short takes longer to write than to compute. Measured on 2 cores.
_SHORT = 1024


class GradientFunction:
    """x ↦ gradients at one point, read once from the jaxpr of a network.

    `columns` is the number of points in the second slot of the kernel, and `pairing`
    the pairs of outputs in it, by which it is decided which gradients stay factored.
    """

    def __init__(self, points: Points, columns: int, pairing: Pairing = "full"):
        self.out_size = points.output.size
        self.pairing: Pairing = pairing
        leaves = jax.tree.leaves(points.params)
        self.program = network_program(points)
        rates = jax.tree.leaves(points.rates)  # none of them if all are 1
        several = {i for i, rate in enumerate(rates) if rate.size > 1}
        uses = weight_uses(self.program, len(leaves))
        self.uses = [use for use in uses if use.leaf not in several]
        used = {use.leaf for use in self.uses}
        self.others = [i for i in range(len(leaves)) if i not in used]
        self.dtype = points.output.dtype
        self.shapes = [leaf.shape for leaf in leaves]
        self.stay_factored = [
            _pairs_are_cheaper(use, self.out_size, columns, pairing)
            for use in self.uses
        ]

    def __call__(
        self, params: Params, x: Any, units: Float[Array, "out outputs"] | None = None
    ) -> Gradients:
        """Gradients at the point `x`, without the axis of points.

        They are those of all outputs, or of the combinations in the rows of `units`.
        """
        if units is None:
            units = jnp.eye(self.out_size, dtype=self.dtype)
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
        to_deltas, by_free = jax.vmap(pull)(units)
        deltas = [
            functools.reduce(jnp.multiply, scale, jax.vmap(use.deltas)(delta))
            for use, delta, scale in zip(self.uses, to_deltas, scales, strict=True)
        ]
        none = jnp.zeros((len(units), 0), dtype)
        whole = [gradient.reshape(len(units), -1) for gradient in by_free]
        return self._assembled([none, *whole], data, deltas)

    def _assembled(
        self, whole: list[Array], data: list[Array], deltas: list[Array]
    ) -> Gradients:
        """With the gradients of used parameters, factored or formed, after `whole`."""
        formed, factors, lookups = [], [], []
        uses = zip(self.uses, self.stay_factored, data, deltas, strict=True)
        for use, stays, x_part, delta in uses:
            if not stays:
                formed.append(_formed(use, x_part, delta))
            elif use.is_lookup:
                lookups.append(Lookups(x_part, delta[:, 0], use.sizes[2]))
            else:
                factors.append(Factors(x_part, delta))
        return Gradients(_gathered([*whole, *formed]), tuple(factors), tuple(lookups))

    def over(
        self,
        params: Params,
        xs: Inputs,
        units: Float[Array, "out outputs"] | None = None,
    ) -> Gradients:
        """Gradients at each point of `xs`."""
        return jax.vmap(functools.partial(self, params, units=units))(xs)

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

    @property
    def products(self) -> Product:
        """Inner products of gradients, for the pairs of outputs of `pairing`."""
        return PRODUCTS[self.pairing]

    def products_per_pair(self) -> int:
        """Multiplications of the inner products for each pair of points."""
        total, formed = 0, sum(math.prod(shape) for shape in self.shapes)
        for use, stays in zip(self.uses, self.stay_factored, strict=True):
            groups, _, fan_in, fan_out = use.sizes
            formed -= groups * fan_in * fan_out * stays
            total += _products_of_factors(use, self.out_size, self.pairing) * stays
        return total + _products(self.out_size, self.pairing) * formed

    def forming_per_point(self) -> int:
        """Multiplications for each output of forming gradients from factors."""
        return sum(
            math.prod(use.sizes)
            for use, stays in zip(self.uses, self.stay_factored, strict=True)
            if not stays and not use.is_lookup
        )

    def bytes_per_point(self, points: Points, outputs: int | None = None) -> int:
        """Bytes of the gradients of `outputs` outputs, all if left out, at one point,
        and of what reverse mode stores."""
        size = self.out_size if outputs is None else outputs
        itemsize = points.output.dtype.itemsize
        activations = activation_bytes(
            points.apply, points.params, take(points.x_train, 0)
        )
        numbers, formed = 0, points.n_params
        for use, stays in zip(self.uses, self.stay_factored, strict=True):
            groups, positions, fan_in, fan_out = use.sizes
            numbers += groups * positions * (fan_in + size * fan_out)
            formed -= groups * fan_in * fan_out * stays
        # The cotangents of each output take as many bytes as the activations.
        numbers += size * formed
        return (1 + size) * activations + numbers * itemsize

    def bytes_per_pair(self, points: Points, outputs: int | None = None) -> int:
        """Bytes of the products of factors for each pair of points."""
        size = self.out_size if outputs is None else outputs
        pairs = [
            use.sizes[0] * use.sizes[1] ** 2
            for use, stays in zip(self.uses, self.stay_factored, strict=True)
            if stays
        ]
        numbers = 2 * max(pairs, default=0) * _sums(size, self.pairing)
        return numbers * points.output.dtype.itemsize


def _sums(outputs: int, pairing: Pairing) -> int:
    """How many sums over positions there are for each pair of points."""
    return {"full": outputs**2, "diagonal": outputs, "trace": 1}[pairing]


def _products(outputs: int, pairing: Pairing) -> int:
    """How many pairs of outputs there are for each pair of points."""
    return outputs**2 if pairing == "full" else outputs


def _pairs_are_cheaper(
    use: WeightUse, out_size: int, columns: int, pairing: Pairing
) -> bool:
    """Whether products of factors take less time than gradients and their products.

    Counted in multiplications for each pair of points.
    """
    groups, positions, fan_in, fan_out = use.sizes
    size = groups * fan_in * fan_out
    formed = out_size * size * (1 if use.is_lookup else positions) / columns
    products = _products(out_size, pairing) * size
    return _products_of_factors(use, out_size, pairing) < products + formed


def _products_of_factors(use: WeightUse, out_size: int, pairing: Pairing) -> int:
    """Multiplications for each pair of points."""
    groups, positions, fan_in, fan_out = use.sizes
    same = 0 if use.is_lookup else fan_in
    inner = _products(out_size, pairing) * fan_out
    inner += _sums(out_size, pairing) * _ELEMENTWISE + same
    return groups * positions**2 * inner


def _gathered(parts: list[Array]) -> tuple[Array, ...]:
    """The short arrays of `parts` concatenated, then the others."""
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
