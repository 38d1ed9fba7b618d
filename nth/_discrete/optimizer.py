"""An optimizer of Optax, applied to a network's parameters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree

from .._custom_types import Params
from .dependence import Dependence, dependences, state_dependences
from .power_series import Value, push
from .program import Program, trace, with_numbers_as_inputs

_EXAMPLES = "optax.sgd(0.1, momentum=0.9) or optax.adam(1e-3)"


class Update(NamedTuple):
    """The result of an update: each leaf an array, or a series."""

    updates: list[Value]
    state: list[Value]


class TracedOptimizer(eqx.Module):
    """An optimizer as a program on the leaves of gradients, state and parameters."""

    program: Program = eqx.field(static=True)
    numbers: list[Array]
    """Its numbers, such as learning rates: the first inputs of the program."""

    start: list[Array]
    """The leaves of the optimizer's state before the first step."""

    shapes: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    """Those of the leaves of gradients and parameters."""

    forms: tuple[Dependence, ...] = eqx.field(static=True)
    """The form of each leaf of the state."""

    linear: bool = eqx.field(static=True)
    """Whether updates are linear in gradients, parameters and state."""

    moves_start: bool = eqx.field(static=True)
    """For a linear optimizer, whether parameters move also without gradients."""

    def __call__(
        self,
        gradients: Sequence[Value],
        state: Sequence[Value],
        params: Sequence[Value],
    ) -> Update:
        inputs = [*self.numbers, *gradients, *state, *params]
        outputs = push(self.program.jaxpr, inputs)
        return Update(outputs[: len(params)], outputs[len(params) :])


def traced(optimizer: Any, params: Params) -> TracedOptimizer:
    """`optimizer` for parameters `params`.

    **Raises:** `ValueError` if it is no optimizer of Optax, needs more than gradients
    and parameters, or does not fit the parameters.
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ValueError(
            "optimizer must be an optax.GradientTransformation, such as "
            f"{_EXAMPLES}; got {optimizer!r}."
        )
    init, state = _initialized(optimizer, params)
    closed = _traced_update(optimizer, params, state)
    count = len(jax.tree.leaves(params))
    leaves = jax.tree.leaves(state)
    updates, forms = state_dependences(closed.jaxpr, count, len(leaves))
    jaxpr, numbers = with_numbers_as_inputs(closed)
    return TracedOptimizer(
        program=Program(jaxpr),
        numbers=numbers,
        start=leaves,
        shapes=tuple(jax.eval_shape(lambda: jax.tree.leaves(params))),
        forms=tuple(forms),
        linear=_is_linear(updates, forms),
        moves_start=_moves_start(init, count, updates, forms),
    )


def _initialized(optimizer: Any, params: Params) -> tuple[Jaxpr | None, PyTree]:
    """The optimizer's first state, and the program that makes it."""
    try:
        state = jax.tree.map(jnp.asarray, optimizer.init(params))
    except Exception as error:  # that of a user may raise anything
        raise ValueError(
            f"optimizer: its init failed on the network's trained parameters: {error}"
        ) from error
    try:
        return trace(optimizer.init, params)[0].jaxpr, state
    except Exception:  # one that looks at numbers
        return None, state


def _traced_update(optimizer: Any, params: Params, state: PyTree) -> ClosedJaxpr:
    try:
        closed, (updates, after) = trace(optimizer.update, params, state, params)
    except Exception as error:  # that of a user may raise anything
        raise ValueError(
            "optimizer: its update failed, given gradients, its state and the "
            f"parameters: {error}. Optimizers that need more, such as the value of "
            f"the loss, cannot be used; {_EXAMPLES} can."
        ) from error
    for name, one, other in (("updates", params, updates), ("state", state, after)):
        if _layout(one) != _layout(other):
            raise ValueError(
                f"optimizer: its update gives {name} of another structure, shape or "
                f"dtype than it takes: {other}, from {_layout(one)[1]}."
            )
    return closed


def _layout(tree: PyTree) -> tuple[Any, list[Any]]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _is_linear(updates: Sequence[Dependence], forms: Sequence[Dependence]) -> bool:
    """A constant update, such as noise, makes an affine optimizer, which is not
    linear."""
    return all(update.form in ("zero", "linear") for update in updates) and not any(
        form.form == "nonlinear" for form in forms
    )


def _moves_start(
    init: Jaxpr | None,
    count: int,
    updates: Sequence[Dependence],
    forms: Sequence[Dependence],
) -> bool:
    """Whether without any gradient parameters move: by weight decay, or by a state that
    is not 0 at the start."""
    varying = [form for form in forms if form.varies]
    if any("parameters" in form.sources for form in (*updates, *varying)):
        return True
    if init is None:
        return bool(varying)
    given = [Dependence("linear", frozenset({"parameters"}))] * count
    first = dependences(init, given)
    return any(
        form.varies and start.form != "zero"
        for form, start in zip(forms, first, strict=True)
    )
