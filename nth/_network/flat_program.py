"""A network as a flat list of primitive operations, read from its jaxpr.

Calls of `jax.jit` are inlined, so that every use of a parameter is visible. The jaxprs
of other primitives (`scan`, `cond`, custom derivatives) are not inlined.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
from jaxtyping import Array

from .._internal.jaxpr import evaluate

# A value: its number, or a constant of the jaxpr.
Atom = int | Literal

_INLINED = ("jit", "pjit")


class Step(NamedTuple):
    """One primitive operation; values are numbered in the order of their creation."""

    equation: Any
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The static parameters of the primitive."""
        return self.equation.params


class FlatProgram(NamedTuple):
    """The operations of a function of arrays."""

    constants: dict[int, Any]
    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    steps: tuple[Step, ...]
    avals: dict[int, Any]
    """The shape and dtype of each value."""

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """The shape of a value."""
        return self._aval(atom).shape

    def dtype(self, atom: Atom) -> Any:
        """The dtype of a value."""
        return self._aval(atom).dtype

    def _aval(self, atom: Atom) -> Any:
        return atom.aval if isinstance(atom, Literal) else self.avals[atom]

    def run(
        self,
        inputs: Sequence[Array],
        replace: Callable[[int, Array], Array] = lambda number, value: value,
    ) -> dict[int, Any]:
        """All values; `replace` is applied to each value that a step computes."""
        values = {**self.constants, **dict(zip(self.inputs, inputs, strict=True))}
        for step in self.steps:
            operands = [value_of(values, atom) for atom in step.inputs]
            outputs = evaluate(step.equation, operands)
            for number, output in zip(step.outputs, outputs, strict=True):
                values[number] = replace(number, output)
        return values


def value_of(values: dict[int, Any], atom: Atom) -> Any:
    """The value of an atom, among all `values`."""
    return atom.val if isinstance(atom, Literal) else values[atom]


def flat_program(function: Callable[..., Any], *arguments: Any) -> FlatProgram:
    """The operations of `function` at arguments of these shapes.

    The inputs of the program are the leaves of the arguments.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    reader = _Reader()
    numbers = [reader.new(var) for var in closed.jaxpr.invars]
    outputs = reader.read(closed.jaxpr, closed.consts, numbers)
    return FlatProgram(
        reader.constants,
        tuple(numbers),
        tuple(outputs),
        tuple(reader.steps),
        reader.avals,
    )


class _Reader:
    """Numbers the values of a jaxpr and of the jaxprs that it calls."""

    def __init__(self):
        self.constants: dict[int, Any] = {}
        self.steps: list[Step] = []
        self.avals: dict[int, Any] = {}

    def new(self, var: Any) -> int:
        number = len(self.avals)
        self.avals[number] = var.aval
        return number

    def read(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Atom]) -> Any:
        """Append the steps of `jaxpr`; returns its outputs."""
        # A jaxpr that is called twice has its own numbers in each call.
        atoms: dict[Any, Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            number = self.new(var)
            atoms[var], self.constants[number] = number, value

        def atom_of(var: Any) -> Atom:
            return var if isinstance(var, Literal) else atoms[var]

        for equation in jaxpr.eqns:
            operands = tuple(map(atom_of, equation.invars))
            if equation.primitive.name in _INLINED:
                inner = equation.params["jaxpr"]
                outputs = self.read(inner.jaxpr, inner.consts, operands)
            else:
                outputs = tuple(map(self.new, equation.outvars))
                self.steps.append(Step(equation, operands, outputs))
            atoms |= dict(zip(equation.outvars, outputs, strict=True))
        return tuple(map(atom_of, jaxpr.outvars))
