"""Analysis of jaxprs: the primitives of a function, and its multiplications."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, jaxpr_as_fun

_NO_NAMES = DebugInfo("equation", "", None, None)


def evaluate(equation: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    """One equation on the values of its operands; a literal is its own value."""
    values = {
        var: value
        for var, value in zip(equation.invars, inputs, strict=True)
        if not isinstance(var, Literal)
    }
    program = Jaxpr(
        constvars=[],
        invars=list(values),
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
        debug_info=_NO_NAMES,
    )
    return jaxpr_as_fun(ClosedJaxpr(program, []))(*values.values())


def primitives(jaxpr: Any) -> Iterator[str]:
    """The names of the primitives of a jaxpr, including its nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for part in _nested(equation):
            yield from primitives(part)


def multiplications(jaxpr: Any) -> int:
    """The multiplications of a function: those of products of matrices and of
    convolutions, and one for each entry that any other operation computes.

    Of a scan each iteration counts, of `cond` the longest branch, of a `while` loop one
    iteration.
    """
    return sum(map(_multiplications_of, jaxpr.eqns))


def _multiplications_of(equation: Any) -> int:
    params = equation.params
    if nested := list(map(multiplications, _nested(equation))):
        if equation.primitive.name == "cond":
            return max(nested)
        return sum(nested) * params.get("length", 1)
    entries = sum(math.prod(var.aval.shape) for var in equation.outvars)
    shapes = [var.aval.shape for var in equation.invars]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return entries * math.prod(shapes[0][d] for d in contracted)
    if equation.primitive.name == "conv_general_dilated":
        outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        return entries * math.prod(shapes[1]) // max(1, outputs)
    return entries


def _nested(equation: Any) -> Iterator[Any]:
    """The jaxprs in the parameters of an equation."""
    for part in jax.tree.leaves(
        equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")
    ):
        if hasattr(part, "eqns"):
            yield part


def differentiated(
    jaxpr: Any, active: Sequence[bool] | None = None
) -> tuple[set[str], list[bool]]:
    """The names of the primitives that derivatives pass through.

    `active` marks the inputs that are differentiated, by default all. Also returns
    which outputs depend on them through floating-point numbers.
    """
    active = [True] * len(jaxpr.invars) if active is None else active
    known = {var for var, on in zip(jaxpr.invars, active, strict=True) if on}
    names: set[str] = set()
    for equation in jaxpr.eqns:
        inputs = [_is_in(var, known) for var in equation.invars]
        if not any(inputs):
            continue
        outputs = [True] * len(equation.outvars)
        if equation.primitive.name in ("jit", "pjit"):
            inner, outputs = differentiated(equation.params["jaxpr"].jaxpr, inputs)
            names |= inner
        else:
            names.add(equation.primitive.name)
        for var, on in zip(equation.outvars, outputs, strict=True):
            if on and jnp.issubdtype(var.aval.dtype, jnp.inexact):
                known.add(var)
    return names, [_is_in(var, known) for var in jaxpr.outvars]


def _is_in(var: Any, known: set[Any]) -> bool:
    return not isinstance(var, Literal) and var in known
