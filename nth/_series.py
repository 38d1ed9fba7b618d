"""The state of the matrix-free form: coefficients in ε of the parameters."""

from typing import Any, TypeAlias

import equinox as eqx
import jax

from ._errors import require_instance
from ._types import Params

Steps: TypeAlias = tuple[Params, ...]


class SeriesState(eqx.Module):
    """The coefficients of θ_ε at one time: the state of a `MatrixFreeHierarchy`."""

    base: Params | None
    """u_0 = θ₀ under weight decay, which moves it; `None` without."""

    steps: Steps
    """u_1, …, u_{p−1}."""

    @property
    def order(self) -> int:
        """The level p."""
        return len(self.steps) + 1


def require_state(state: Any, like: SeriesState) -> SeriesState:
    """`state`, if it is of the same order, weight decay and parameters as `like`."""
    require_instance("state", state, SeriesState, "Solution.state")
    if state.order != like.order:
        raise ValueError(
            f"state is of order {state.order}, and this hierarchy of order "
            f"{like.order}: use nth.MatrixFreeHierarchy(..., {state.order})."
        )
    if (state.base is None) != (like.base is None):
        given, own = ("without", "with") if state.base is None else ("with", "without")
        raise ValueError(
            f"state is of a solve {given} weight decay, and this hierarchy is {own} "
            "weight decay: use the same weight_decay for both."
        )
    if _layout(state) != _layout(like):
        raise ValueError(
            "state has other arrays than the parameters of this hierarchy's network: "
            "take the state of a solution of this network."
        )
    return state


def _layout(state: SeriesState) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), state)
