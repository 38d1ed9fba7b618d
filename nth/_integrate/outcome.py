"""The outcome of a solve, and the errors and warnings about it."""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._custom_types import Scalar
from .._dynamics.base import AbstractDynamics
from .._internal.validation import is_traced
from .._internal.warnings import call_with_values
from .._solution.results import RESULTS
from .._solution.solution import Solution
from .diagnosis import cause_at_start
from .options import CONSTANT_STEPS
from .restarts import MOST_RESTARTS
from .validity import first_inaccurate, warn_of_error, warn_of_window


def result_of(
    solved: Any, left: Bool[Array, ""], finite: Bool[Array, ""], event: Any
) -> RESULTS:
    """The result of a solve, given the result `solved` of diffrax, whether the model
    left its window, whether all outputs and losses at reached times are finite, and
    what an event means."""
    results = diffrax.RESULTS
    pairs = (
        (results.event_occurred, event),
        (results.max_steps_reached, RESULTS.max_steps_reached),
        (results.dt_min_reached, RESULTS.step_too_small),
        (results.max_steps_rejected, RESULTS.max_steps_rejected),
        (results.nonlinear_max_steps_reached, RESULTS.implicit_step_failed),
        (results.nonlinear_divergence, RESULTS.implicit_step_failed),
    )
    result = RESULTS.failed
    for theirs, ours in pairs:
        result = RESULTS.where(solved == theirs, ours, result)
    ended = RESULTS.where(left, RESULTS.left_window, RESULTS.successful)
    ended = RESULTS.where(finite | left, ended, RESULTS.not_finite)
    return RESULTS.where(solved == results.successful, ended, result)


def report(
    dynamics: AbstractDynamics, solution: Solution, throw: bool, max_steps: int
) -> Solution:
    """Warn if the window was left; raise if the solve failed inside it and `throw`."""
    result = solution.result
    reached, failed = _reached_and_failed(result, solution.valid_until)
    last_time, label = solution.stats["last_time"], solution.label
    if is_traced(solution):
        _warn(solution, reached)
        return _raise_later(solution, failed, max_steps) if throw else solution
    if failed and throw:
        causes = _failures(max_steps)
        reason = causes[int(_index(result, causes))][1]
        if last_time == 0 or result == RESULTS.not_finite:
            reason = cause_at_start(dynamics) or reason
        raise RuntimeError(
            f"the solve of the {label} failed at t = {last_time:.6g}, before the last "
            f"time {solution.ts[-1]:.6g}: {reason} Pass throw=False for the values up "
            "to that time."
        )
    _warn(solution, reached)
    return solution


@eqx.filter_jit
def _reached_and_failed(
    result: RESULTS, valid_until: Scalar
) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether the last time was reached, and whether the solve failed."""
    reached = (result == RESULTS.successful) | (result == RESULTS.left_window)
    ended = reached | (result == RESULTS.error_reached)
    return reached, ~ended & jnp.isinf(valid_until)


def _warn(solution: Solution, reached: Bool[Array, ""]) -> None:
    """One warning, of the window or else of the estimated error, where it applies."""
    until, last_time = solution.valid_until, solution.stats["last_time"]
    call_with_values(partial(warn_of_window, solution.label), until, reached, last_time)
    first = first_inaccurate(solution.ts, solution.error_share, until)
    call_with_values(partial(warn_of_error, solution.label, "t = "), first)


def _index(result: Any, causes: list[tuple[Any, str]]) -> Array:
    """The index in `causes` of a result; the last is for any other."""
    same = [result == cause for cause, _ in causes[:-1]]
    return jnp.select(same, list(range(len(same))), len(same))


def _raise_later(
    solution: Solution, failed: Bool[Array, ""], max_steps: int
) -> Solution:
    """`solution`, with an error at run time if the solve failed."""
    causes = _failures(max_steps)
    messages = [
        f"the solve of the {solution.label} failed before the last time: {reason} "
        "Pass throw=False for the values up to that time."
        for _, reason in causes
    ]
    index = _index(solution.result, causes)

    def outputs(s: Solution) -> tuple[Any, ...]:  # a caller may use only one of them
        return s.train, s.test, s.loss

    checked = eqx.branched_error_if(outputs(solution), failed, index, messages)
    return eqx.tree_at(outputs, solution, checked)


def _failures(max_steps: int) -> list[tuple[Any, str]]:
    """Each result of a failed solve, with its message; the last is for any other."""
    kink = (
        "At a kink of the loss or of the network adaptive steps can become too small: "
        f"use fixed steps, solver=diffrax.Heun(), {CONSTANT_STEPS}."
    )
    return [
        (
            RESULTS.max_steps_reached,
            f"it took max_steps={max_steps} steps. Give a larger max_steps or earlier "
            'times; for long times, where solver="auto" cannot be used, as under '
            f"jax.jit, solver=nth.ROCK4(). {kink}",
        ),
        (
            RESULTS.max_restarts_reached,
            f"it took {MOST_RESTARTS} restarts. Give a larger until_error, a higher "
            "order or earlier times.",
        ),
        (
            RESULTS.step_too_small,
            "its steps became smaller than the smallest allowed step, as happens where "
            f"outputs are not finite. {kink}",
        ),
        (
            RESULTS.max_steps_rejected,
            "too many steps were rejected: give diffrax.ClipStepSizeController a "
            "larger store_rejected_steps, or None.",
        ),
        (
            RESULTS.not_finite,
            "outputs or losses are NaN or infinite. Check the loss. Fixed steps may "
            "be too large: give a smaller dt0, or leave out stepsize_controller for "
            "adaptive steps.",
        ),
        (
            None,
            "the equations of an implicit step could not be solved. Use smaller steps, "
            "other tolerances, or an explicit solver such as diffrax.Tsit5().",
        ),
    ]
