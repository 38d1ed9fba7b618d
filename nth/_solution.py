"""The result of a solve."""

import os
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ._types import Scalar, State


class Solution(eqx.Module):
    """Outputs over time, on training and test points.

    Values at times that the solver did not reach are NaN.
    """

    ts: Float[Array, " T"] | Int[Array, " T"]
    """The requested times; of discrete training the steps, integers."""

    train: Float[Array, "T n *out"]
    """Outputs on the training points."""

    test: Float[Array, "T q *out"]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: Float[Array, " T"]
    """The training loss L of those outputs."""

    valid_until: Scalar
    """The first time that the predicted loss rises, which gradient flow's never does:
    past it the truncation has left its window. ∞ if it never rose. Found between two
    steps of the solver, so as fine as they are. For discrete training, whose loss may
    rise, see [`nth.solve_discrete`][]."""

    result: Any
    """A `diffrax.RESULTS`: `successful`; `event_occurred` if the outputs of a
    truncation passed a million times their initial scale; else the cause of failure."""

    state: State
    """The state at the last time reached: for [`nth.MatrixFreeHierarchy`][] what its
    `predict` takes, for the trained network its parameters."""

    counts: dict[str, Array]
    """The numbers in `stats`."""

    label: str = eqx.field(static=True)
    """What was solved: `"level-3 hierarchy"`, `"network"`."""

    method: str = eqx.field(static=True)
    """How: `"dense"`, `"matrix-free"`, `"gradient flow"`, `"gradient descent"`."""

    watched: PyTree[Float[Array, "T ..."]] = None
    """What the option `watch` of [`nth.integrate`][] saw of the state at each time;
    `None` without it."""

    @property
    def stats(self) -> dict[str, Any]:
        """`method`; `num_steps`, and of a flow `num_accepted_steps` and
        `num_rejected_steps`; `num_evaluations` of the vector field, where the solver's
        number of stages is known, or of the gradient in discrete training; `last_time`,
        the time that the solver reached, or the last requested step with outputs."""
        return {"method": self.method, **self.counts}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the solution to a file, whole or not at all.

        **Arguments:** `path`, a file in a folder that exists. A file that is there is
        replaced.

        **Raises:** `ValueError` if the file cannot be written.
        """
        from ._saving import save_solution

        save_solution(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        like: PyTree = None,
        *,
        watched_like: PyTree = None,
    ) -> "Solution":
        """Read a solution that [`save`][nth.Solution.save] wrote.

        A file holds arrays and text. Nothing is unpickled, so a file that comes from
        someone else can do no more than hold wrong numbers.

        **Arguments:**

        - `path`: the file.
        - `like`: the structure of `state`, a pytree of arrays or of
            `jax.ShapeDtypeStruct` with the shapes and dtypes of the saved state, such
            as `dynamics.initial_state()`. If left out, a state of several arrays is a
            flat tuple of them.
        - `watched_like`: the same for `watched`.

        **Raises:** `ValueError` if there is no file, if it is damaged or does not hold
        a solution, or if the structures do not fit what was saved.
        """
        from ._saving import load_solution

        return load_solution(path, like, watched_like)
