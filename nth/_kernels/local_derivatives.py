"""Second derivatives of a network along pairs of directions, step by step.

With ẋ_a the derivative of a value x of the network along a direction a, and λ the
derivative of an output f by the result of a step g(x),

    ∂_a ∂_c f = Σ over steps of λ · D²g(x)[ẋ_a, ẋ_c],

so that a forward derivative along each direction and one backward pass suffice: there
is no backward pass for each direction. Linear steps add nothing. A step that is linear
in each of two operands, such as W h, adds g(Ẇ_a, ḣ_c) + g(Ẇ_c, ḣ_a).
"""

import math
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

from .._custom_types import Params
from .._internal.jaxpr import evaluate
from .._network.flat_program import FlatProgram, Step, value_of
from .evaluation import Points, network_program

# Operations whose second derivatives are zero. Any other operation may be linear too:
# its second derivatives are then computed, and are zero.
_SUMS = ("add", "add_any", "sub", "neg", "cumsum", "reduce_sum")
_SHAPES = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev")
_PARTS = ("slice", "dynamic_slice", "dynamic_update_slice", "gather", "concatenate")
_CHOICES = ("abs", "max", "min", "reduce_max", "reduce_min", "select_n")
_COPIES = ("copy", "convert_element_type", "pad")
_LINEAR = frozenset((*_SUMS, *_SHAPES, *_PARTS, *_CHOICES, *_COPIES))
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})

# Derivatives along each direction, with that axis in front, by number of the value.
_Tangents = dict[int, Array]


class _Term(NamedTuple):
    """A step with second derivatives; values are given by their numbers."""

    step: Step
    operands: tuple[int, ...]
    """Those that depend on parameters, the smaller one first if `bilinear`."""
    outputs: tuple[int, ...]
    bilinear: bool

    @property
    def paired(self) -> tuple[int, ...]:
        """The operands whose derivatives along the second direction are multiplied."""
        return self.operands[:1] if self.bilinear else self.operands


class SecondDerivatives:
    """∂_a ∂_c of each output at a point, read once from the jaxpr of a network."""

    def __init__(self, points: Points):
        self.dtype, self.out_size = points.output.dtype, points.output.size
        leaves = jax.tree.leaves(points.params)
        self.program = network_program(points)
        self.terms = _terms(self.program, len(leaves))
        self.operands = sorted({i for term in self.terms for i in term.operands})
        self.results = sorted({i for term in self.terms for i in term.outputs})

    @property
    def is_real(self) -> bool:
        """Whether all values are real: derivatives of complex ones have other rules."""
        dtypes = {aval.dtype for aval in self.program.avals.values()}
        return not any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)

    @property
    def has_convolutions(self) -> bool:
        """Whether the network has convolutions of known form."""
        names = {step.name for step in self.program.steps}
        return "conv_general_dilated" in names

    @property
    def n_paired(self) -> int:
        """The length of the inner products for each pair of directions."""
        paired = [i for term in self.terms for i in term.paired]
        return sum(math.prod(self.program.shape(i)) for i in paired)

    def bytes_per_direction(self) -> int:
        """Bytes of what is held for each direction at a point."""
        inputs = set(self.program.inputs)  # their derivatives are the directions
        computed = [i for i in self.operands if i not in inputs]
        held = sum(math.prod(self.program.shape(i)) for i in computed)
        return (held + self.out_size * self.n_paired) * self.dtype.itemsize

    def __call__(
        self, params: Params, x: Any, directions: Params, n_second: int
    ) -> Float[Array, "out directions second"]:
        """Along each of `directions`, and each of the first `n_second` of them."""
        leaves, inputs = jax.tree.leaves(params), jax.tree.leaves(x)

        def forward(leaves: list[Array]) -> tuple[list[Array], dict[int, Any]]:
            values = self.program.run([*leaves, *inputs])
            return [value_of(values, i) for i in self.operands], values

        _, push, values = jax.linearize(forward, leaves, has_aux=True)
        moved = jax.tree.leaves(directions)
        tangents = dict(zip(self.operands, jax.vmap(push)(moved), strict=True))
        signals = self._signals([*leaves, *inputs])
        total = jnp.zeros((self.out_size, len(moved[0]), n_second), self.dtype)
        for term in self.terms:
            total = total + self._added(term, values, tangents, signals, n_second)
        return total

    def _signals(self, inputs: list[Array]) -> dict[int, Float[Array, "out ..."]]:
        """The derivative of each output by the results of steps."""

        def outputs(taps: list[Array]) -> Array:
            added = dict(zip(self.results, taps, strict=True))

            def tapped(number: int, value: Array) -> Array:
                return value + added[number] if number in added else value

            (output,) = self.program.outputs
            return value_of(self.program.run(inputs, tapped), output)

        shapes = [(self.program.shape(i), self.program.dtype(i)) for i in self.results]
        _, pull = jax.vjp(outputs, [jnp.zeros(*shape) for shape in shapes])
        (by_result,) = jax.vmap(pull)(jnp.eye(self.out_size, dtype=self.dtype))
        return dict(zip(self.results, by_result, strict=True))

    def _added(
        self,
        term: _Term,
        values: dict[int, Any],
        tangents: _Tangents,
        signals: dict[int, Array],
        n_second: int,
    ) -> Float[Array, "out directions second"]:
        """The second derivatives of one step."""
        own = [tangents[i] for i in term.operands]

        def change(signals: list[Array], moved: list[Array]) -> list[Array]:
            return _change(term, values, signals, moved)

        over_both = jax.vmap(jax.vmap(change, (None, 0)), (0, None))
        changes = over_both([signals[i] for i in term.outputs], own)
        total = jnp.zeros((), self.dtype)
        for first, second in zip(changes, own, strict=False):  # the paired operands
            part = _products(first, second[:n_second])
            if term.bilinear:
                exchanged = part
                if n_second < len(second):
                    exchanged = _products(first[:, :n_second], second)
                part = part + jnp.swapaxes(exchanged, 1, 2)
            total = total + part.astype(self.dtype)
        return total


def _products(
    first: Float[Array, "out a ..."], second: Float[Array, "c ..."]
) -> Float[Array, "out a c"]:
    first = first.reshape(*first.shape[:2], -1)
    return jnp.einsum("oas,cs->oac", first, second.reshape(len(second), -1))


def _change(
    term: _Term, values: dict[int, Any], signals: list[Array], moved: list[Array]
) -> list[Array]:
    """λ · D²g[ẋ_a, ·] for the paired operands, of a bilinear step its half."""

    def weighted(operands: list[Array]) -> Float[Array, ""]:
        given = {**values, **dict(zip(term.operands, operands, strict=True))}
        inputs = [value_of(given, atom) for atom in term.step.inputs]
        results = evaluate(term.step.equation, inputs)
        by_number = dict(zip(term.step.outputs, results, strict=True))
        pairs = zip(term.outputs, signals, strict=True)
        parts = [jnp.sum(signal * by_number[i]) for i, signal in pairs]
        return reduce(jnp.add, [part.astype(signals[0].dtype) for part in parts])

    at = [values[i] for i in term.operands]
    if term.bilinear:
        return [jax.grad(lambda small: weighted([small, moved[1]]))(at[0])]
    return jax.jvp(jax.grad(weighted), (at,), (moved,))[1]


def _terms(program: FlatProgram, n_leaves: int) -> list[_Term]:
    """The steps that have second derivatives by the first `n_leaves` inputs."""
    depends = set(program.inputs[:n_leaves])
    terms = []
    for step in program.steps:
        varying = [
            i
            for i, atom in enumerate(step.inputs)
            if not isinstance(atom, Literal) and atom in depends
        ]
        floating = [
            i for i in step.outputs if jnp.issubdtype(program.dtype(i), jnp.inexact)
        ]
        if not varying or not floating:
            continue
        depends.update(floating)
        if step.name in _LINEAR or _is_linear_in(step.name, varying):
            continue
        numbers = {step.inputs[i] for i in varying}
        operands = sorted(
            (i for i in numbers if not isinstance(i, Literal)),
            key=lambda i: math.prod(program.shape(i)),
        )
        bilinear = step.name in _BILINEAR and len(operands) == 2
        terms.append(_Term(step, tuple(operands), tuple(floating), bilinear))
    return terms


def _is_linear_in(name: str, varying: list[int]) -> bool:
    """Whether an operation is linear in its operands at these positions."""
    if name in _BILINEAR:
        return len(varying) == 1
    return name == "div" and varying == [0]
