"""The state of the matrix-free method: coefficients in ε of the parameters."""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import Params, Scalar
from .._internal.validation import require_instance

Steps: TypeAlias = tuple[Params, ...]


class SeriesState(eqx.Module):
    """The coefficients of θ_ε at one time: the state of a `MatrixFreeHierarchy`."""

    base: Params | None
    """u_0, which is θ₀ at t = 0 and decays; `None` without weight decay."""

    steps: Steps
    """u_1, …, u_{p−1}."""

    @property
    def order(self) -> int:
        """The level p."""
        return len(self.steps) + 1

    def squared_norm(self) -> Scalar:
        """Σ_{k<p} [‖θ_ε‖²]_k, of a state with u_0."""
        terms = [jax.tree.leaves(term) for term in (self.base, *self.steps)]
        products = [
            jnp.vdot(a, b)
            for i, term in enumerate(terms)
            for partner in terms[: self.order - i]
            for a, b in zip(term, partner, strict=True)
        ]
        return sum(products[1:], products[0])


def require_state(
    argument: str, state: Any, order: int, params: Params, decays: bool | None
) -> None:
    """Raise `ValueError` unless `state` has level `order` and the layout of `params`.

    It must have u_0 if `decays` is true, must not if it is false, and may if `None`.
    """
    require_instance(argument, state, SeriesState, "Solution.state")
    if not isinstance(state.steps, tuple):
        raise ValueError(f"{argument}.steps must be a tuple; got {state.steps!r}.")
    if state.order != order:
        raise ValueError(
            f"{argument} has order {state.order}, and this hierarchy has order "
            f"{order}: use nth.MatrixFreeHierarchy(..., order={state.order})."
        )
    if decays is not None and (state.base is not None) != decays:
        given, wanted = ("no ", "") if decays else ("", "no ")
        raise ValueError(
            f"{argument} belongs to a hierarchy with {given}weight_decay, and this one "
            f"has {wanted}weight_decay: give both the same."
        )
    terms = (*state.steps, *([] if state.base is None else [state.base]))
    if any(_layout(term) != _layout(params) for term in terms):
        raise ValueError(
            f"{argument} differs in structure, shapes or dtypes from the parameters of "
            "this hierarchy's network: use the state of a solution of this network."
        )


def _layout(params: Params) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    return treedef, [
        (getattr(leaf, "shape", None), getattr(leaf, "dtype", None)) for leaf in leaves
    ]
