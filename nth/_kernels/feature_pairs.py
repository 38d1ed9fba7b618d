"""Pairs of outputs of a network f(x) = F(h(x)) that ends in few features h.

With A = ∂F_c/∂h at each point, K_h the full kernel of the features, and K_F that of F
as a network on the features,

    K⁽²⁾[a, c, b, c] = A_a[c] K_h[a, b] A_b[c]ᵀ + K_F[a, c, b, c],

so that there are as many backward passes through h as features, not as outputs: of a
classifier, the width of its last hidden layer. It is an identity if no parameter is in
both h and F; the network's jaxpr shows which are where.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

from .._custom_types import Inputs
from .._internal.jaxpr import evaluate
from .._network.adapters import ApplyNetwork
from .._network.base import OutputFunction
from .._network.flat_program import Atom, FlatProgram, flat_program, value_of
from .._problem.inputs import take
from .evaluation import Points

# Bytes that the kernel of the features may take, and the slopes A.
_MOST_BYTES = 2**27
# Bytes of the cotangents of the points whose slopes are computed at once.
_SLOPE_BYTES = 2**26


class Cut(NamedTuple):
    """A value h through which alone the outputs depend on the input."""

    program: FlatProgram
    features: int
    """The number of the value h."""
    size: int
    below: tuple[int, ...]
    """The parameters in h, as numbers of leaves."""
    above: tuple[int, ...]
    """Those in F."""


def cut_of(points: Points) -> Cut | None:
    """The smallest h with at most half as many entries as there are outputs, for which
    kernels and slopes fit in `_MOST_BYTES`; `None` if there is none."""
    leaves, structure = jax.tree.flatten(points.params)

    def outputs(leaves: list[Array], x: Any) -> Float[Array, " out"]:
        return points.apply(jax.tree.unflatten(structure, leaves), x).reshape(-1)

    program = flat_program(outputs, leaves, take(points.x_train, 0))
    parameters = program.inputs[: len(leaves)]
    x = set(program.inputs[len(leaves) :])
    n_out, itemsize = points.output.size, points.output.dtype.itemsize
    rows, columns = points.n_rows // n_out, points.n_train
    best: Cut | None = None
    for value in (number for step in program.steps for number in step.outputs):
        size = program.avals[value].size
        held = max(columns * size, n_out) * rows * size * itemsize
        smaller = size <= (best.size if best else n_out // 2)
        if program.dtype(value) != points.output.dtype or not size or not smaller:
            continue
        above, below = _needed(program, program.outputs, {value}), set[int]()
        if held <= _MOST_BYTES and value in above and not above & x:
            below = _needed(program, [value], set())
        in_h, in_f = (
            tuple(i for i, number in enumerate(parameters) if number in part)
            for part in (below, above)
        )
        if in_h and in_f and not set(in_h) & set(in_f):
            best = Cut(program, value, size, in_h, in_f)
    return best


def _needed(program: FlatProgram, targets: Iterable[Atom], known: set[int]) -> set[int]:
    """The values from which `targets` are computed, up to those that are `known`."""
    needed = {atom for atom in targets if not isinstance(atom, Literal)}
    for step in reversed(program.steps):
        if (needed - known).intersection(step.outputs):
            needed.update(a for a in step.inputs if not isinstance(a, Literal))
    return needed


def _computed(program: FlatProgram, target: Atom, known: dict[int, Any]) -> Array:
    """The value of `target`, from `known` values."""
    needed = _needed(program, [target], set(known)) - set(known)
    values = {**program.constants, **known}
    for step in program.steps:
        if needed.intersection(step.outputs):
            operands = [value_of(values, atom) for atom in step.inputs]
            outputs = evaluate(step.equation, operands)
            values |= dict(zip(step.outputs, outputs, strict=True))
            values |= known
    return value_of(values, target)


def features_at(points: Points, cut: Cut) -> Points:
    """h as a network on the points."""
    leaves = [jax.tree.leaves(points.params)[i] for i in cut.below]
    program = cut.program
    numbers = [program.inputs[i] for i in cut.below]
    of_x = program.inputs[len(jax.tree.leaves(points.params)) :]

    def features(leaves: tuple[Array, ...], x: Any) -> Float[Array, " features"]:
        known = dict(zip(numbers, leaves, strict=True))
        known |= dict(zip(of_x, jax.tree.leaves(x), strict=True))
        return _computed(program, cut.features, known).reshape(-1)

    inputs = (points.x_train, points.x_extra)
    return _network(points, features, leaves, cut.below, cut.size, inputs)


def head_at(points: Points, cut: Cut, features: Points) -> Points:
    """F as a network on the features of the points."""
    leaves = [jax.tree.leaves(points.params)[i] for i in cut.above]
    program = cut.program
    numbers = [program.inputs[i] for i in cut.above]
    (output,) = program.outputs

    def head(leaves: tuple[Array, ...], h: Any) -> Float[Array, " out"]:
        known = dict(zip(numbers, leaves, strict=True))
        known[cut.features] = h.reshape(program.shape(cut.features))
        return _computed(program, output, known)

    train, extra = (
        features.apply.over(features.params, x)
        for x in (features.x_train, features.x_extra)
    )
    size = points.output.size
    return _network(points, head, leaves, cut.above, size, (train, extra))


def _network(
    points: Points,
    function: Callable[..., Array],
    leaves: Sequence[Array],
    numbers: Sequence[int],
    size: int,
    inputs: tuple[Inputs, Inputs],
) -> Points:
    """A function of the leaves with these numbers, at inputs for the points."""

    def module(leaves: Sequence[Array]) -> ApplyNetwork:
        return ApplyNetwork(tuple(leaves), function, batched=False)

    params, frozen = eqx.partition(module(leaves), eqx.is_inexact_array)
    rates = None
    if points.rates is not None:
        by_leaf = jax.tree.leaves(points.rates)
        rates = eqx.filter(module([by_leaf[i] for i in numbers]), eqx.is_array)
    output = jax.ShapeDtypeStruct((size,), points.output.dtype)
    apply = OutputFunction(frozen, output)
    return Points(apply, params, *inputs, points.with_train, rates)


def slopes(head: Points) -> tuple[Float[Array, "points out features"], ...]:
    """∂F/∂h at training and extra points."""
    n_out = head.output.size
    most = max(1, _SLOPE_BYTES // (n_out**2 * head.output.dtype.itemsize))
    slope = jax.jacrev(partial(head.apply, head.params))
    train, extra = (
        jax.lax.map(slope, x, batch_size=min(most, max(1, len(x))))
        for x in (head.x_train, head.x_extra)
    )
    return train, extra


def through_features(
    ntk: Float[Array, "rows features train features"],
    rows: Float[Array, "rows out features"],
    columns: Float[Array, "train out features"],
    trace: bool,
) -> Float[Array, "rows train *out"]:
    """A K_h Aᵀ for each output, or the sum of these."""

    def of_row(row: tuple[Array, Array]) -> Float[Array, "train *out"]:
        kernel, slope = row  # features train features; out features
        moved = jnp.einsum("ibj,bcj->bci", kernel, columns)
        return jnp.einsum("bci,ci->b" if trace else "bci,ci->bc", moved, slope)

    return jax.lax.map(of_row, (ntk, rows))
