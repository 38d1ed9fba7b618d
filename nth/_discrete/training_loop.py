"""The loop of discrete training, for the network and for every level."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._custom_types import Scalar, State
from .._integrate.diagnosis import cause_at_start
from .._integrate.estimates import Estimate, estimate_of
from .._integrate.validity import first_inaccurate, warn_of_error
from .._internal.validation import is_traced
from .._internal.warnings import say
from .._problem.inputs import take
from .._solution.results import RESULTS
from .._solution.solution import Solution
from .models import AbstractTraining
from .plan import Plan


def run(training: AbstractTraining, plan: Plan) -> Solution:
    """Take the steps of `plan`, and issue warnings about them."""
    ran = _run(training, plan)
    lost = jnp.any(ran.lost)
    last = jnp.max(jnp.where(ran.lost, 0, plan.steps))
    if not is_traced(lost, last) and bool(lost & (last == 0)):
        _refuse_if_not_finite(training)
    where = jnp.where(
        lost & jnp.isinf(ran.first), last.astype(ran.first.dtype), ran.first
    )
    say(partial(training.report, int(plan.steps.size)), where, lost, last)
    steps = plan.steps.astype(ran.first.dtype)
    first = first_inaccurate(steps, ran.estimate.error_share, ran.first)
    say(partial(warn_of_error, training.dynamics.label, "step "), first)
    return _as_solution(training, plan, ran, last)


def _refuse_if_not_finite(training: AbstractTraining) -> None:
    """Raise `ValueError` if outputs or gradients are NaN or infinite at step 0."""
    if cause := cause_at_start(training.dynamics):
        raise ValueError(f"training cannot start: {cause}")


class _Run(NamedTuple):
    outputs: Float[Array, "T m *out"]
    lost: Bool[Array, " T"]
    left: Bool[Array, ""]
    first: Scalar
    estimate: Estimate
    state: State


@eqx.filter_jit
def _run(training: AbstractTraining, plan: Plan) -> _Run:
    """Every step in one scan; outputs are computed at the requested steps only."""
    problem, state = training.dynamics.problem, training.initial_state()
    count = len(plan.steps)

    def observed(state: Any) -> Any:  # a bound method of a module cannot be hashed
        return training.observed(state)

    like = jax.eval_shape(observed, state)

    def save(saved: Any, slot: Int[Array, ""], state: Any) -> Any:
        new = jax.lax.cond(slot < count, observed, lambda _: _zeros(like), state)
        return jax.tree.map(lambda s, n: s.at[slot].set(n, mode="drop"), saved, new)

    @jax.checkpoint
    def step(carry: Any, now: Any) -> Any:
        state, saved = carry
        slot, rows = now
        x, y = problem.x_train, problem.y_train
        if rows is not None:
            x, y = take(x, rows), y[rows]
        state = training.step(state, x, y)
        return (state, save(saved, slot, state)), None

    carry = (state, save(_zeros(like, count), plan.slots[0], state))
    (state, saved), _ = jax.lax.scan(step, carry, (plan.slots[1:], plan.rows))
    return _judged(training, plan, saved, state)


def _zeros(like: Any, *leading: int) -> Any:
    return jax.tree.map(lambda s: jnp.zeros((*leading, *s.shape), s.dtype), like)


def _judged(training: AbstractTraining, plan: Plan, saved: Any, state: Any) -> _Run:
    """Where the run diverged, and where a truncation left its window."""
    start = training.observed(training.initial_state())
    lost, left = training.judged(start, saved)
    lost = jax.lax.cummax(lost.astype(jnp.int32)).astype(bool)
    outputs = saved.outputs
    first = plan.steps[jnp.argmax(left)].astype(outputs.dtype)
    kept = jnp.expand_dims(~lost, range(1, outputs.ndim))
    outputs = jnp.where(kept, outputs, jnp.nan)
    errors = training.estimated(saved)
    errors = None if errors is None else jnp.where(kept, errors, jnp.nan)
    return _Run(
        outputs=outputs,
        lost=lost,
        left=jnp.any(left),
        first=jnp.where(jnp.any(left), first, jnp.inf),
        estimate=estimate_of(errors, outputs, start.outputs),
        state=training.trained_state(state),
    )


def _as_solution(
    training: AbstractTraining, plan: Plan, ran: _Run, last: Int[Array, ""]
) -> Solution:
    problem = training.dynamics.problem
    train, test = jnp.split(ran.outputs, [problem.n_train], axis=1)
    number = jnp.asarray(plan.number)
    ended = RESULTS.where(ran.left, RESULTS.left_window, RESULTS.successful)
    ended = RESULTS.where(jnp.any(ran.lost), RESULTS.diverged, ended)
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
    )
