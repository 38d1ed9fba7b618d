"""Evaluation of a jaxpr on truncated power series in ε.

A value is an array, which does not depend on ε, or a tuple of K + 1 arrays, its
coefficients. Every primitive without a rule of its own is differentiated K times by
nested `jvp`. The rules save work, and add what derivatives lack: √ of a series that is
0 at every order is 0, where its derivative at 0 is infinite. So parameters that never
receive a gradient, such as those of an input that is always 0, stay where they are.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array

from .._dynamics.taylor_coefficients import by_jvp
from .._internal.jaxpr import evaluate

Series: TypeAlias = tuple[Array, ...]
Value: TypeAlias = Array | Series


def push(jaxpr: Jaxpr, inputs: Sequence[Value]) -> list[Value]:
    """The outputs of `jaxpr`, from its constants and inputs.

    All series have the same number of coefficients.
    """
    variables = (*jaxpr.constvars, *jaxpr.invars)
    known: dict[Any, Value] = dict(zip(variables, inputs, strict=True))

    def read(var: Any) -> Value:
        if isinstance(var, Literal):
            return jnp.asarray(var.val, var.aval.dtype)  # pyright: ignore
        return known[var]

    for equation in jaxpr.eqns:
        found = _outputs_of(equation, [read(var) for var in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _outputs_of(equation: Any, inputs: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if not any(isinstance(value, tuple) for value in inputs):
        return list(evaluate(equation, inputs))
    if name in ("jit", "pjit"):
        inner = equation.params["jaxpr"]
        return push(inner.jaxpr, [*inner.consts, *inputs])
    if _is_linear_map(equation) and not any(isinstance(v, tuple) for v in inputs[1:]):
        return [_each(equation, inputs)]
    if name == "mul" and not all(isinstance(value, tuple) for value in inputs):
        return [_each(equation, inputs)]
    if name == "div" and not isinstance(inputs[1], tuple):
        return [_each(equation, inputs)]
    if rule := _RULES.get(name):
        order = _order_of(inputs)
        return [rule(equation, *(as_series(value, order) for value in inputs))]
    return _by_derivatives(equation, inputs)


# Applied to each coefficient of the first operand.
_LINEAR_MAPS = frozenset(
    {
        "broadcast_in_dim",
        "copy",
        "neg",
        "reduce_sum",
        "reshape",
        "slice",
        "squeeze",
        "transpose",
    }
)


def _is_linear_map(equation: Any) -> bool:
    if equation.primitive.name == "convert_element_type":
        return jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact)
    return equation.primitive.name in _LINEAR_MAPS


def _each(equation: Any, inputs: Sequence[Value]) -> Series:
    """A linear primitive on each coefficient of the one operand that is a series."""
    return tuple(
        evaluate(
            equation,
            [value[k] if isinstance(value, tuple) else value for value in inputs],
        )[0]
        for k in range(_order_of(inputs))
    )


def as_series(value: Value, order: int) -> Series:
    """A series of `order` coefficients."""
    if isinstance(value, tuple):
        return value
    return (value, *[jnp.zeros_like(value)] * (order - 1))


def _order_of(inputs: Sequence[Value]) -> int:
    """The number of coefficients of the operands that are series."""
    return next(len(value) for value in inputs if isinstance(value, tuple))


def _sum(equation: Any, left: Series, right: Series) -> Series:
    sign = -1 if equation.primitive.name == "sub" else 1
    return tuple(one + sign * other for one, other in zip(left, right, strict=True))


def _product(equation: Any, left: Series, right: Series) -> Series:
    return tuple(
        sum(left[i] * right[k - i] for i in range(1, k + 1)) + left[0] * right[k]
        for k in range(len(left))
    )


def _quotient(equation: Any, numerator: Series, denominator: Series) -> Series:
    found: list[Array] = []
    for k, term in enumerate(numerator):
        rest = sum(denominator[i] * found[k - i] for i in range(1, k + 1))
        found.append((term - rest) / denominator[0])
    return tuple(found)


def _root(equation: Any, series: Series) -> Series:
    first, *rest = series
    root = jnp.sqrt(first)
    found = [root]
    nowhere = jnp.stack([term != 0 for term in rest]).any(axis=0) if rest else False
    for k, term in enumerate(rest, 1):
        term = term - sum(found[i] * found[k - i] for i in range(1, k))
        safe = jnp.where(root == 0, 1, 2 * root)
        # The root of a series that begins at a higher order is no power series.
        at_zero = jnp.where(nowhere, jnp.nan, 0)
        found.append(jnp.where(root == 0, at_zero, term / safe))
    return tuple(found)


def _power(equation: Any, series: Series) -> Series:
    exponent = equation.params["y"]
    if exponent not in (1, 2, 3, 4):
        return _by_derivatives(equation, [series])[0]  # pyright: ignore
    found = series
    for _ in range(exponent - 1):
        found = _product(equation, found, series)
    return found


def _square(equation: Any, series: Series) -> Series:
    return _product(equation, series, series)


_RULES: dict[str, Callable[..., Series]] = {
    "add": _sum,
    "add_any": _sum,
    "div": _quotient,
    "integer_pow": _power,
    "mul": _product,
    "sqrt": _root,
    "square": _square,
    "sub": _sum,
}


def _by_derivatives(equation: Any, inputs: Sequence[Value]) -> list[Value]:
    """Any primitive; outputs that are no floating numbers have no derivative."""
    moving = [isinstance(value, tuple) for value in inputs]
    series = [value for value in inputs if isinstance(value, tuple)]
    base, *steps = (list(terms) for terms in zip(*series, strict=True))

    def function(index: int) -> Callable[[list[Array]], Array]:
        def output(point: list[Array]) -> Array:
            points = iter(point)
            values = [
                next(points) if moves else value
                for moves, value in zip(moving, inputs, strict=True)
            ]
            return evaluate(equation, values)[index]

        return output

    return [
        _coefficients(function(index), base, steps)
        if jnp.issubdtype(var.aval.dtype, jnp.inexact)
        else function(index)(base)
        for index, var in enumerate(equation.outvars)
    ]


def _coefficients(
    function: Callable[[list[Array]], Array], base: list[Array], steps: Any
) -> Series:
    return tuple(by_jvp(function, base, steps)) if steps else (function(base),)
