"""A proof, from its jaxpr, that an optimizer is linear in the gradients.

An optimizer maps gradients, its own state and the parameters to updates and a new
state. Each variable of that computation is given a form:

- `zero`: it is 0;
- `constant`: it depends on no gradient and on no parameter, as counts and schedules do;
- `linear`: it is linear and homogeneous in gradients, parameters and such state as is
  linear itself, with constant coefficients;
- `nonlinear`: everything else, and whatever is not proved.

State enters as what it becomes: its form is a fixed point over steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal as OneOf, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

Source: TypeAlias = OneOf["gradients", "parameters"]


class Dependence(NamedTuple):
    """The form of a variable, and what it depends on."""

    form: OneOf["zero", "constant", "linear", "nonlinear"]
    sources: frozenset[Source] = frozenset()

    @property
    def varies(self) -> bool:
        """Whether it depends on gradients or parameters."""
        return self.form in ("linear", "nonlinear")


ZERO = Dependence("zero")
CONSTANT = Dependence("constant")

# Linear in the first operand, with all others constant.
_LINEAR_MAPS = frozenset(
    """
    broadcast_in_dim convert_element_type copy cumsum dynamic_slice gather neg reshape
    reduce_sum rev slice squeeze transpose
    """.split()  # noqa: SIM905
)
_SUMS = frozenset({"add", "add_any", "concatenate", "pad", "sub"})
_PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "mul"})
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
}


def state_dependences(
    jaxpr: Jaxpr, gradients: int, state: int
) -> tuple[list[Dependence], list[Dependence]]:
    """The forms of the updates and of each leaf of the state.

    The inputs of `jaxpr` are gradients, state and parameters, `gradients`, `state` and
    `gradients` leaves; its outputs are updates and the new state.
    """
    inputs = [Dependence("linear", frozenset({"gradients"}))] * gradients
    params = [Dependence("linear", frozenset({"parameters"}))] * gradients

    def fixed_point(known: list[Dependence]) -> list[Dependence]:
        while True:
            after = dependences(jaxpr, [*inputs, *known, *params])[gradients:]
            joined = [_over_steps(*pair) for pair in zip(known, after, strict=True)]
            if joined == known:
                return known
            known = joined

    # From below, as a buffer is linear because what is added to it is. A leaf that is
    # only handed on is then still "zero", and is the number that it starts as.
    known = fixed_point([ZERO] * state)
    known = fixed_point([CONSTANT if form == ZERO else form for form in known])
    return dependences(jaxpr, [*inputs, *known, *params])[:gradients], known


def _over_steps(before: Dependence, after: Dependence) -> Dependence:
    """The form of a leaf of the state that had the form `before`, or `after` a step.

    What a linear leaf starts as is a coefficient of order 0. A step that sets it to
    another number would make it affine.
    """
    sources = before.sources | after.sources
    if before.form == "linear" and after.form == "constant":
        return Dependence("nonlinear", sources)
    order = ("zero", "constant", "linear", "nonlinear")
    later = order.index(after.form) > order.index(before.form)
    return Dependence(after.form if later else before.form, sources)


def dependences(jaxpr: Any, inputs: Sequence[Dependence]) -> list[Dependence]:
    """The form of each output of `jaxpr`, from those of its inputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= dict.fromkeys(jaxpr.constvars, CONSTANT)

    def read(var: Any) -> Dependence:
        if isinstance(var, Literal):
            return ZERO if np.all(np.asarray(var.val) == 0) else CONSTANT
        return known[var]

    for equation in jaxpr.eqns:
        found = _outputs_of(equation, [read(var) for var in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _outputs_of(equation: Any, inputs: list[Dependence]) -> list[Dependence]:
    name, count = equation.primitive.name, len(equation.outvars)
    if name in _CALLS:
        inner = equation.params[_CALLS[name]]
        return dependences(getattr(inner, "jaxpr", inner), inputs)
    if name == "cond" and not inputs[0].varies:
        branches = [
            dependences(b.jaxpr, inputs[1:]) for b in equation.params["branches"]
        ]
        return [_alternatives(each) for each in zip(*branches, strict=True)]
    rule = _RULES.get(name)
    if rule is not None:
        found = rule(equation, inputs)
        # Rounding to integers, or to a truth value, is not linear.
        if found.form == "linear" and not _is_float(equation.outvars[0]):
            found = Dependence("nonlinear", found.sources)
        return [found]
    if any(one.varies for one in inputs):
        return [Dependence("nonlinear", _sources(inputs))] * count
    return [CONSTANT] * count


def _is_float(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.floating)


def _sources(inputs: Iterable[Dependence]) -> frozenset[Source]:
    return frozenset().union(*(one.sources for one in inputs))


def _alternatives(inputs: Sequence[Dependence]) -> Dependence:
    """The form of a value that is one of `inputs`, or their sum: a constant beside a
    linear form is affine, which is not linear."""
    forms = {one.form for one in inputs}
    if "nonlinear" in forms or {"constant", "linear"} <= forms:
        return Dependence("nonlinear", _sources(inputs))
    for form in ("linear", "constant"):
        if form in forms:
            return Dependence(form, _sources(inputs))
    return ZERO


def _sum(equation: Any, inputs: list[Dependence]) -> Dependence:
    return _alternatives(inputs)


def _linear_map(equation: Any, inputs: list[Dependence]) -> Dependence:
    first, *others = inputs
    if any(other.varies for other in others):
        return Dependence("nonlinear", _sources(inputs))
    return first


def _product(equation: Any, inputs: list[Dependence]) -> Dependence:
    varying = [one for one in inputs if one.varies]
    if any(one.form == "nonlinear" for one in varying) or len(varying) > 1:
        return Dependence("nonlinear", _sources(inputs))
    if ZERO in inputs:
        return ZERO
    return varying[0] if varying else CONSTANT


def _quotient(equation: Any, inputs: list[Dependence]) -> Dependence:
    numerator, denominator = inputs
    if denominator.varies:
        return Dependence("nonlinear", _sources(inputs))
    return numerator


def _selection(equation: Any, inputs: list[Dependence]) -> Dependence:
    which, *cases = inputs
    if which.varies:
        return Dependence("nonlinear", _sources(inputs))
    return _alternatives(cases)


def _power(equation: Any, inputs: list[Dependence]) -> Dependence:
    (base,) = inputs
    if equation.params["y"] == 1 or not base.varies:
        return base if equation.params["y"] > 0 else CONSTANT
    return Dependence("nonlinear", base.sources)


_RULES: dict[str, Callable[[Any, list[Dependence]], Dependence]] = {
    **dict.fromkeys(_LINEAR_MAPS, _linear_map),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(_PRODUCTS, _product),
    "div": _quotient,
    "integer_pow": _power,
    "select_n": _selection,
}
