"""The possible results of a solve."""

from typing import Any

import equinox as eqx

NAMES = (
    "successful",
    "left_window",
    "diverged",
    "error_reached",
    "max_restarts_reached",
    "max_steps_reached",
    "step_too_small",
    "max_steps_rejected",
    "implicit_step_failed",
    "not_finite",
    "failed",
)
"""The names of all results, as saved in files of solutions."""


class RESULTS(eqx.Enumeration):
    """How a solve ended: the type of [`nth.Solution.result`][nth.Solution].

    - `successful`: the last time was reached, inside the window of validity.
    - `left_window`: the last time was reached, and the truncation left its window at
        `valid_until`.
    - `diverged`: the outputs exceeded a million times their initial scale, or became
        infinite.
    - `error_reached`: the estimated error reached `until_error`, and the solve ended.
    - `max_restarts_reached`, `max_steps_reached`, `step_too_small`,
        `max_steps_rejected`, `implicit_step_failed`, `not_finite` and `failed`: the
        solver failed.

    Compare with `==`; `RESULTS[result]` is the description. Results are stored as JAX
    arrays, so that a solve under `jax.jit` or `jax.vmap` can return them.
    """

    successful = ""
    left_window = (
        "The last time was reached, and the truncation left its window at "
        "`valid_until`: later values are not valid predictions."
    )
    diverged = (
        "The outputs exceeded a million times their initial scale, or became infinite."
    )
    error_reached = "The estimated error reached `until_error`: later values are NaN."
    max_restarts_reached = "The solve was restarted too often."
    max_steps_reached = "The solver took `max_steps` steps before the last time."
    step_too_small = "The steps became smaller than the smallest allowed step."
    max_steps_rejected = "The step size controller rejected too many steps."
    implicit_step_failed = "The equations of an implicit step were not solved."
    not_finite = "The outputs or the losses are NaN or infinite."
    failed = "The solver failed for another reason."


def name_of_result(result: Any) -> str:
    """The name of a concrete result, such as `"successful"`."""
    return next(name for name in NAMES if bool(result == getattr(RESULTS, name)))
