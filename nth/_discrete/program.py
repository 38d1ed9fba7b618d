"""An optimizer's update as a program whose numbers are arguments."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jaxtyping import Array

from .._internal.validation import is_traced


class Program:
    """A jaxpr, compared and hashed by what it computes.

    Two calls of `optax.sgd`, or of `jax.make_jaxpr`, give different objects: compiled
    functions that take one of them as a static argument are found again by content.
    """

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr = jaxpr
        self._key = tuple(_content(jaxpr))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def trace(function: Callable[..., Any], *inputs: Any) -> tuple[ClosedJaxpr, Any]:
    """The program of `function`, and the structure of its output.

    Optimizers are written for JAX's default promotion of types.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        closed, output = jax.make_jaxpr(function, return_shape=True)(*inputs)
    return closed, output


def with_numbers_as_inputs(closed: ClosedJaxpr) -> tuple[Jaxpr, list[Array]]:
    """The program with its floating numbers, such as learning rates, as further inputs,
    before the others, so that other numbers compile nothing new; and those numbers.

    Constants of the program become inputs too: a jaxpr may have none without values.
    """
    numbers = [jnp.asarray(constant) for constant in closed.consts]
    variables = list(closed.jaxpr.constvars)

    def taken_out(operand: Any) -> Any:
        if not _is_float(operand):
            return operand
        variables.append(Var(operand.aval))
        numbers.append(jnp.asarray(operand.val, operand.aval.dtype))
        return variables[-1]

    equations = [
        equation.replace(invars=[taken_out(operand) for operand in equation.invars])
        for equation in closed.jaxpr.eqns
    ]
    inputs = [*variables, *closed.jaxpr.invars]
    jaxpr = closed.jaxpr.replace(constvars=[], invars=inputs, eqns=equations)
    return jaxpr, numbers


def _is_float(operand: Any) -> bool:
    """Whether an operand is a floating number, and no variable."""
    literal = isinstance(operand, Literal)
    return literal and jnp.issubdtype(np.asarray(operand.val).dtype, jnp.floating)


def _content(jaxpr: Jaxpr) -> Iterator[Any]:
    """Everything that a program is made of; variables by the order of their use."""
    numbers: dict[Any, int] = {}

    def name(operand: Any) -> Any:
        if isinstance(operand, Literal):
            return ("number", str(operand.aval), _array(operand.val))
        return numbers.setdefault(operand, len(numbers)), str(operand.aval)

    yield tuple(map(name, (*jaxpr.constvars, *jaxpr.invars)))
    for equation in jaxpr.eqns:
        yield equation.primitive.name, tuple(map(name, equation.invars))
        yield tuple(map(name, equation.outvars))
        for key, value in sorted(equation.params.items()):
            yield key, _parameter(value)
    yield tuple(map(name, jaxpr.outvars))


def _parameter(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return tuple(_content(value.jaxpr)), tuple(map(_array, value.consts))
    if isinstance(value, Jaxpr):
        return tuple(_content(value))
    if isinstance(value, tuple | list):
        return tuple(map(_parameter, value))
    if isinstance(value, np.ndarray | jax.Array):
        return _array(value)
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return value


def _array(value: Any) -> Any:
    if is_traced(value):
        return _Identity(value)
    array = np.asarray(value)
    return array.dtype.name, array.shape, array.tobytes()


class _Identity:
    """A value that equals itself alone; held, so that its address is not used again."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
