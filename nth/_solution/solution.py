"""The result of a solve."""

import os
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._custom_types import Scalar, State
from .._internal.validation import require_positive
from .prediction import AbstractPrediction, summary
from .results import RESULTS, name_of_result as name


class Solution(AbstractPrediction):
    """Outputs over time, on training and test points.

    Values at times that the solver did not reach are NaN.
    """

    ts: Float[Array, " T"] | Int[Array, " T"]
    """The requested times; for discrete training the steps, as integers."""

    train: Float[Array, "T n *out"]
    """Outputs on the training points."""

    test: Float[Array, "T q *out"]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: Float[Array, " T"]
    """The training loss L of those outputs."""

    valid_until: Scalar
    """The first time at which the predicted loss increases, or ∞. The loss of gradient
    flow never increases, so past this time the truncation has left its window. The time
    is interpolated between two steps of the solver, whose size limits its accuracy. For
    discrete training, whose loss may increase, see [`nth.solve_discrete`][]."""

    error_estimate: Float[Array, " T"]
    """An estimate of the root-mean-square distance of the outputs, over all m points,
    from those of the trained network. NaN where there is none: see the page "How far
    can I trust a prediction?"."""

    error_share: Float[Array, " T"]
    """`error_estimate` over the greatest root-mean-square change of the outputs that is
    predicted up to that time."""

    result: RESULTS
    """How the solve ended: an [`nth.RESULTS`][]."""

    state: State
    """The state at the last time reached: for [`nth.MatrixFreeHierarchy`][] the
    argument of `predict`, for the trained network its parameters."""

    counts: dict[str, Array]
    """The numerical entries of `stats`."""

    label: str = eqx.field(static=True)
    """What was solved: `"level-3 hierarchy"`, `"network"`."""

    method: str = eqx.field(static=True)
    """`"dense"`, `"matrix-free"`, `"gradient flow"` or `"training"`."""

    solver: str | None = eqx.field(static=True, default=None)
    """The name of the solver, such as `"Tsit5"`; `None` for discrete training."""

    saved: PyTree[Float[Array, "T ..."]] = None
    """Values of the option `save_fn` of [`nth.integrate`][] at each time; `None` if it
    is not given."""

    restarts: Float[Array, " r"] | None = None
    """The times at which the series was expanded again; `None` without the option
    `restart`. `state` then holds what it is expanded around."""

    output_errors: Float[Array, "T m *out"] | None = None
    """The estimate for each output, up to its sign: `error_estimate` is the root of the
    mean of their squares. `None` if there is none."""

    @property
    def stats(self) -> dict[str, Any]:
        """`method`; `solver`; `num_steps`, and in continuous time
        `num_accepted_steps` and `num_rejected_steps`; `num_evaluations` of the vector
        field, if the solver's number of stages is known, or of the gradient in discrete
        time; `last_time`, the last time that the solver reached, or the last requested
        step with outputs."""
        used = {} if self.solver is None else {"solver": self.solver}
        return {"method": self.method, **used, **self.counts}

    def __repr__(self) -> str:
        method = f"method {self.method}"
        return summary(self, self.label, method, ended=lambda: name(self.result))

    def trusted_until(self, share: float = 0.1) -> Scalar:
        """The first requested time at which `error_share` exceeds `share`; ∞ if it does
        not, NaN if there is no estimate.

        **Raises:** `ValueError` unless `share` is a finite number above 0.
        """
        share = require_positive("share", share)
        exceeds = self.error_share > share
        first = self.ts[jnp.argmax(exceeds)].astype(self.loss.dtype)
        unknown = jnp.all(jnp.isnan(self.error_share))
        until = jnp.where(jnp.any(exceeds), first, jnp.inf)
        return jnp.where(unknown, jnp.nan, until)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the solution to a file, atomically.

        **Arguments:** `path`, a file in an existing folder. An existing file is
        replaced.

        **Raises:** `ValueError` if the file cannot be written.
        """
        from .files import save_solution

        save_solution(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        like: PyTree = None,
        *,
        saved_like: PyTree = None,
    ) -> "Solution":
        """Read a solution that [`save`][nth.Solution.save] wrote.

        A file contains arrays and text, and nothing is unpickled, so an untrusted file
        cannot run code.

        **Arguments:**

        - `path`: the file.
        - `like`: the structure of `state`, a pytree of arrays or of
            `jax.ShapeDtypeStruct` with the shapes and dtypes of the saved state, such
            as `dynamics.initial_state()`. By default a state of several arrays is
            returned as a flat tuple.
        - `saved_like`: the same for `saved`.

        **Raises:** `ValueError` if the file does not exist, is damaged or does not hold
        a solution, or if a structure does not match what was saved.
        """
        from .files import load_solution

        return load_solution(path, like, saved_like)
