"""A network, its parameters, and the points of each slot of a kernel."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Inputs, Params
from .._internal.jaxpr import multiplications
from .._internal.validation import all_finite, is_traced
from .._network.base import OutputFunction, TrainableNetwork
from .._network.dense_layers import Layer, as_layers, rated
from .._network.finiteness import require_finite_result
from .._network.flat_program import FlatProgram, flat_program
from .._network.learning_rates import overflow_by_rates
from .._problem.inputs import count, join, take


class Points(eqx.Module):
    """A network and its points.

    The first slot of a kernel runs over `x_train`, if `with_train`, and over `x_extra`;
    each later slot runs over `x_train`.
    """

    apply: OutputFunction
    params: Params
    x_train: Inputs
    x_extra: Inputs
    with_train: bool = eqx.field(static=True)
    rates: Params | None = None

    @property
    def x(self) -> Inputs:
        """The points of the first slot."""
        return join(*[self.x_train] * self.with_train, self.x_extra)

    @property
    def on_train(self) -> "Points":
        """The same network with all slots over the training points."""
        none = take(self.x_train, slice(0))
        return Points(
            self.apply, self.params, self.x_train, none, True, rates=self.rates
        )

    @property
    def n_train(self) -> int:
        """The number of training points."""
        return count(self.x_train)

    @property
    def n_rows(self) -> int:
        """The number of entries of the first slot."""
        points = self.n_train * self.with_train + count(self.x_extra)
        return points * self.output.size

    @property
    def n_slots(self) -> int:
        """The number of training slots, n·C."""
        return self.n_train * self.output.size

    @property
    def n_params(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of one output."""
        return self.apply.output

    def layers(self, params: Params) -> tuple[Layer, ...] | None:
        """The layers of a fully connected network; `None` for any other network."""
        layers = as_layers(self.apply, params, take(self.x_train, 0))
        return None if layers is None else rated(layers, self.rates)


def network_program(points: Points) -> FlatProgram:
    """The operations of (leaves of the parameters, x) ↦ all outputs at one point."""
    leaves, structure = jax.tree.flatten(points.params)

    def outputs(leaves: list[Array], x: Any) -> Float[Array, " out"]:
        return points.apply(jax.tree.unflatten(structure, leaves), x).reshape(-1)

    return flat_program(outputs, leaves, take(points.x_train, 0))


def forward_cost(points: Points) -> int:
    """Multiplications of the network at one point: P for a chain of layers with P
    parameters, beside its activations, and more where parameters are used at many
    positions."""
    apply, x = points.apply, take(points.x_train, 0)

    def outputs(params: Params, x: Any) -> Any:  # a module may have traced fields
        return apply(params, x)

    return multiplications(jax.make_jaxpr(outputs)(points.params, x))


def require_finite_kernels(
    tensors: tuple[Float[Array, "rows ..."], ...], points: Points
) -> None:
    """Raise `ValueError` if one of the kernels K⁽¹⁾ … K⁽ᵖ⁾ has NaN or infinity."""
    if is_traced(tensors) or bool(all_finite(*tensors)):
        return
    x, rates = points.x, points.rates
    n_train = points.n_train if points.with_train else count(x)
    at = (points.apply, points.params, x, n_train)
    for r, tensor in enumerate(tensors, 1):
        otherwise = overflow_by_rates(rates, r - 1) or (
            f"derivatives of order {r - 1} of the network are NaN or infinite at some "
            "of the points, such as those of a norm or a power at 0. Use a lower "
            "order, or a network that is smooth there."
        )
        if r == 2:
            otherwise = overflow_by_rates(rates, 1) or (
                f"products of gradients overflow {tensor.dtype}. Rescale the inputs or "
                "the parameters, or use float64."
            )
        require_finite_result(f"K({r})", tensor, *at, otherwise=otherwise)


@eqx.filter_jit
def layers_at(points: Points) -> tuple[Layer, ...] | None:
    """The layers at the parameters of `points`."""
    return points.layers(points.params)


def points_of(network: TrainableNetwork, rows: Any = None) -> Points:
    """The network and its points; `rows` are those of the first slot."""
    problem = network.problem
    extra = problem.x_test
    if rows is not None:
        extra = take(problem.x, _checked_rows(rows, count(problem.x)))
    return Points(
        network.apply,
        network.params,
        problem.x_train,
        extra,
        with_train=rows is None,
        rates=network.rates,
    )


def _checked_rows(rows: Any, m: int) -> np.ndarray:
    if is_traced(rows):
        raise ValueError(
            "rows has no concrete value under jax.jit, jax.vmap or jax.grad: compute "
            "it outside of them."
        )
    indices = np.asarray(rows)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"rows must be a sequence of indices of points; got {rows!r} (a mask "
            "becomes indices by numpy.flatnonzero)."
        )
    if indices.size == 0 or indices.min() < 0 or indices.max() >= m:
        raise ValueError(
            f"rows must be at least one index from 0 to {m - 1}, of the m = {m} points "
            f"of problem.x; got {rows!r}."
        )
    return indices
