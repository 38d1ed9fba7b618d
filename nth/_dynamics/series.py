"""The state of the matrix-free method: coefficients in ε of the parameters."""

from typing import Any, TypeAlias

import equinox as eqx
import jax

from .._custom_types import Params
from .._internal.validation import require_instance

Steps: TypeAlias = tuple[Params, ...]


class SeriesState(eqx.Module):
    """The coefficients of θ_ε at one time: the state of a `MatrixFreeHierarchy`."""

    base: Params | None
    """u_0 = θ₀ under weight decay, which changes it; `None` without weight decay."""

    steps: Steps
    """u_1, …, u_{p−1}."""

    @property
    def order(self) -> int:
        """The level p."""
        return len(self.steps) + 1


def require_state(state: Any, order: int, params: Params) -> SeriesState:
    """`state`, checked to be of level `order` and of parameters like `params`."""
    require_instance("state", state, SeriesState, "Solution.state")
    if state.order != order:
        raise ValueError(
            f"state is of order {state.order}, and this hierarchy of order {order}: "
            f"use nth.MatrixFreeHierarchy(..., order={state.order})."
        )
    if any(_layout(step) != _layout(params) for step in state.steps):
        raise ValueError(
            "state has other arrays than the parameters of this hierarchy's network: "
            "take the state of a solution of this network."
        )
    return state


def _layout(params: Params) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]
