"""The outcome of a solve, and the errors and warnings about it."""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ._diagnosis import cause_at_start
from ._dynamics import AbstractDynamics
from ._errors import is_traced
from ._finite import all_finite
from ._options import CONSTANT_STEPS
from ._solution import Solution
from ._warn import say
from ._window import warn_of_window

# `Solution.result` is one of these, in continuous and discrete time.
RESULTS = diffrax.RESULTS


def report(
    dynamics: AbstractDynamics, solution: Solution, throw: bool, max_steps: int
) -> Solution:
    """Warn if the window was left; raise if the solve failed inside it and `throw`."""
    successful = solution.result == RESULTS.successful
    finite = all_finite(solution.train, solution.test, solution.loss)
    failed = ~(successful & finite) & jnp.isinf(solution.valid_until)
    last_time, label = solution.stats["last_time"], solution.label
    words = partial(warn_of_window, label)
    if is_traced(solution):
        say(words, solution.valid_until, successful, last_time)
        return _raise_later(solution, failed, max_steps) if throw else solution
    if failed and throw:
        known = _failures(max_steps)
        reason = known[int(_which(solution.result, known))][1]
        if last_time == 0 or successful:
            reason = cause_at_start(dynamics) or reason
        raise RuntimeError(
            f"the solve of the {label} failed at t = {last_time:.6g}, before the last "
            f"time {solution.ts[-1]:.6g}: {reason} Pass throw=False for the values up "
            "to there."
        )
    say(words, solution.valid_until, successful, last_time)
    return solution


def _which(result: Any, known: list[tuple[Any, str]]) -> Array:
    """The index in `known` of a result; the last is for any other."""
    same = [result == item for item, _ in known[:-1]]
    return jnp.select(same, list(range(len(same))), len(same))


def _raise_later(
    solution: Solution, failed: Bool[Array, ""], max_steps: int
) -> Solution:
    """`solution`, with an error at run time if the solve failed."""
    known = _failures(max_steps)
    messages = [
        f"the solve of the {solution.label} failed before the last time: {reason} "
        "Pass throw=False for the values up to there."
        for _, reason in known
    ]
    place = _which(solution.result, known)

    def outputs(s: Solution) -> tuple[Any, ...]:  # each may be the only one used
        return s.train, s.test, s.loss

    checked = eqx.branched_error_if(outputs(solution), failed, place, messages)
    return eqx.tree_at(outputs, solution, checked)


def _failures(max_steps: int) -> list[tuple[Any, str]]:
    """Each result of a failed solve, with its message; the last is for any other."""
    kink = (
        "At a kink of the loss or of the network adaptive steps shrink without end: "
        f"take fixed ones, solver=diffrax.Heun(), {CONSTANT_STEPS}."
    )
    return [
        (
            RESULTS.max_steps_reached,
            f"it took max_steps={max_steps} steps. Give a larger max_steps, or earlier "
            f"times. {kink}",
        ),
        (
            RESULTS.dt_min_reached,
            "its steps became smaller than the least that is allowed, as happens where "
            f"outputs are not finite. {kink}",
        ),
        (
            RESULTS.max_steps_rejected,
            "too many steps were rejected: give diffrax.ClipStepSizeController a "
            "larger store_rejected_steps, or None.",
        ),
        (
            RESULTS.successful,
            "outputs or losses are NaN or infinite. Check the loss; and fixed steps "
            "that are too large do that: give a smaller dt0, or leave out "
            "stepsize_controller for adaptive steps.",
        ),
        (
            None,
            "the equations of an implicit step were not solved. Give smaller steps, "
            "other tolerances, or an explicit solver, such as diffrax.Tsit5().",
        ),
    ]
