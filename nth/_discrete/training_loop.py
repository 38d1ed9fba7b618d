"""The loop of discrete training, for the network and for every level."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._custom_types import Scalar, State
from .._integrate.diagnosis import cause_at_start
from .._integrate.estimates import Estimate, estimate_of, rms_over_points
from .._integrate.validity import (
    first_inaccurate,
    from_first,
    warn_of_error,
    with_nan,
)
from .._internal.checkpoint import is_spread
from .._internal.validation import is_traced
from .._internal.warnings import call_with_values
from .._problem.inputs import take
from .._solution.results import RESULTS
from .._solution.solution import Solution
from .models import AbstractTraining
from .plan import Plan
from .run_options import Progress, RunOptions

# Seconds between two looks at the clock, and how many steps the first one waits for.
_INTERVAL = 0.5
_FIRST_STEPS = 16


def run(
    training: AbstractTraining,
    plan: Plan,
    options: RunOptions,
    until_error: Scalar | None = None,
) -> Solution:
    """Take the steps of `plan`, and issue warnings about them.

    Values are NaN from the first requested step where the estimated error exceeds
    `until_error`.
    """
    save = _Save(training, options.checked_save_fn(training))
    start = _start(save, plan)
    # What the network closes over may be traced, and shows in what it computes.
    traced = is_traced((training, plan, save, start), jnp.zeros(()))
    take_steps = _at_once if traced else _watched
    ran = _judged(save, plan, take_steps(save, plan, start, options), until_error)
    lost = jnp.any(ran.lost)
    last = jnp.max(jnp.where(ran.lost, 0, plan.steps))
    if not is_traced(lost, last) and bool(lost & (last == 0)):
        _refuse_if_not_finite(training)
    _warn(training, plan, ran, lost, last)
    return _as_solution(training, plan, ran, last)


def _warn(
    training: AbstractTraining,
    plan: Plan,
    ran: "_Run",
    lost: Bool[Array, ""],
    last: Int[Array, ""],
) -> None:
    where = jnp.where(
        lost & jnp.isinf(ran.first), last.astype(ran.first.dtype), ran.first
    )
    call_with_values(partial(training.report, int(plan.steps.size)), where, lost, last)
    steps = plan.steps.astype(ran.first.dtype)
    first = first_inaccurate(steps, ran.estimate.error_share, ran.first)
    call_with_values(partial(warn_of_error, training.dynamics.label, "step "), first)


def _refuse_if_not_finite(training: AbstractTraining) -> None:
    """Raise `ValueError` if outputs or gradients are NaN or infinite at step 0."""
    if cause := cause_at_start(training.dynamics):
        raise ValueError(f"training cannot start: {cause}")


class _Save(eqx.Module):
    """What is saved at a requested step."""

    training: AbstractTraining
    save_fn: Callable[..., Any] | None

    def __call__(self, step: Int[Array, ""], state: Any) -> Any:
        observed, extra = self.training.observed(state), None
        if self.save_fn is not None:
            extra = self.save_fn(step, self.training.trained_state(state), None)
        return observed, extra


class _Reached(NamedTuple):
    """Training after so many steps."""

    step: Int[Array, ""]
    state: Any
    saved: Any


@eqx.filter_jit
def _start(save: _Save, plan: Plan) -> _Reached:
    state, zero = save.training.initial_state(), jnp.zeros((), plan.steps.dtype)
    saved = _zeros(jax.eval_shape(lambda: save(zero, state)), len(plan.steps))
    return _stored(save, plan, _Reached(zero, state, saved))


def _stored(save: _Save, plan: Plan, reached: _Reached) -> _Reached:
    """With what is saved at this step, if it is requested."""
    step, state, saved = reached
    slot, count = plan.slots[step], len(plan.steps)
    like = jax.eval_shape(lambda: save(step, state))
    new = jax.lax.cond(
        slot < count,
        lambda state: save(step, state),
        lambda _: _zeros(like),
        state,
    )
    store = partial(jax.tree.map, lambda s, n: s.at[slot].set(n, mode="drop"))
    return _Reached(step, state, store(saved, new))


def _advanced(save: _Save, plan: Plan, reached: _Reached) -> _Reached:
    """One step."""
    problem = save.training.dynamics.problem
    x, y = problem.x_train, problem.y_train
    if plan.rows is not None:
        rows = plan.rows[reached.step]
        x, y = take(x, rows), y[rows]
    state = save.training.step(reached.state, x, y)
    return _stored(save, plan, _Reached(reached.step + 1, state, reached.saved))


@eqx.filter_jit
def _at_once(save: _Save, plan: Plan, start: _Reached, _: RunOptions) -> _Reached:
    """Every step in one scan, which can be differentiated."""

    @jax.checkpoint
    def step(reached: _Reached, _: None) -> tuple[_Reached, None]:
        return _advanced(save, plan, reached), None

    return jax.lax.scan(step, start, None, plan.number)[0]


@eqx.filter_jit
def _until(
    save: _Save, plan: Plan, reached: _Reached, stop: Int[Array, ""]
) -> _Reached:
    """The steps up to `stop`, which is an argument: any number compiles once."""
    return jax.lax.while_loop(
        lambda reached: reached.step < stop, partial(_advanced, save, plan), reached
    )


def _watched(save: _Save, plan: Plan, start: _Reached, options: RunOptions) -> _Reached:
    """The same in pieces, between which progress is shown and saved."""
    progress = Progress(options, save, plan, save.training.dynamics.label)
    reached = progress.resumed(start)
    # Processes that share arrays must compile and run the same pieces.
    spread = is_spread((save, plan))
    size = plan.number if spread and options.checkpoint is None else _FIRST_STEPS
    done = int(reached.step)
    while done < plan.number:
        started = time.monotonic()
        stop = min(done + size, plan.number)
        reached = _until(save, plan, reached, jnp.asarray(stop, plan.steps.dtype))
        done = int(reached.step)
        if not spread and time.monotonic() - started < _INTERVAL:
            size *= 2
        progress.reached(reached, done)
    progress.close()
    return reached


def _zeros(like: Any, *leading: int) -> Any:
    return jax.tree.map(lambda s: jnp.zeros((*leading, *s.shape), s.dtype), like)


class _Run(NamedTuple):
    outputs: Float[Array, "T m *out"]
    extra: PyTree[Float[Array, "T ..."]]
    lost: Bool[Array, " T"]
    left: Bool[Array, ""]
    first: Scalar
    estimate: Estimate
    inaccurate: Bool[Array, ""]
    state: State
    restarts: Float[Array, " most"] | None


@eqx.filter_jit
def _judged(
    save: _Save, plan: Plan, reached: _Reached, until_error: Scalar | None
) -> _Run:
    """Where the run diverged, and where a truncation left its window."""
    training, (saved, extra) = save.training, reached.saved
    start = training.observed(training.initial_state())
    lost, left = training.judged(start, saved)
    lost = from_first(lost)
    errors = training.estimated(saved)
    inaccurate = jnp.zeros_like(lost)
    if until_error is not None and errors is not None:
        inaccurate = from_first(rms_over_points(errors) > until_error)
    values = (saved.outputs, errors, extra)
    outputs, errors, extra = with_nan(values, lost | inaccurate)
    first = plan.steps[jnp.argmax(left)].astype(outputs.dtype)
    return _Run(
        outputs=outputs,
        extra=extra,
        lost=lost,
        left=jnp.any(left),
        first=jnp.where(jnp.any(left), first, jnp.inf),
        estimate=estimate_of(errors, outputs, start.outputs),
        inaccurate=jnp.any(inaccurate & ~lost),
        state=training.trained_state(reached.state),
        restarts=training.restarts(reached.state),
    )


def _as_solution(
    training: AbstractTraining, plan: Plan, ran: _Run, last: Int[Array, ""]
) -> Solution:
    problem = training.dynamics.problem
    train, test = jnp.split(ran.outputs, [problem.n_train], axis=1)
    number = jnp.asarray(plan.number)
    ended = RESULTS.where(ran.left, RESULTS.left_window, RESULTS.successful)
    ended = RESULTS.where(jnp.any(ran.lost), RESULTS.diverged, ended)
    ended = RESULTS.where(ran.inaccurate, RESULTS.error_reached, ended)
    restarts = ran.restarts
    if restarts is not None:
        restarts = restarts[jnp.isfinite(restarts)]
    return Solution(
        ts=plan.steps,
        train=train,
        test=test,
        loss=jax.vmap(problem.loss, in_axes=(0, None))(train, problem.y_train),
        valid_until=ran.first,
        error_estimate=ran.estimate.error_estimate,
        error_share=ran.estimate.error_share,
        output_errors=ran.estimate.output_errors,
        result=ended,
        state=ran.state,
        counts={"num_steps": number, "num_evaluations": number, "last_time": last},
        label=training.dynamics.label,
        method=training.method,
        saved=ran.extra,
        restarts=restarts,
    )
