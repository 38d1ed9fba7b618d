"""The loop of discrete training, for the network and for every level."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._custom_types import Scalar, State
from .._dynamics.parameter_dynamics import AbstractDescent
from .._integrate.diagnosis import cause_at_start
from .._integrate.validity import largest_outputs
from .._internal.validation import is_traced
from .._internal.warnings import say, warn
from .._problem.inputs import take
from .._solution.results import RESULTS
from .._solution.solution import Solution
from .max_learning_rate import critical_rate
from .rule import Plan

# A level is out of its window where two of its predictions, which agree up to its
# order, differ by more than this fraction of the predicted change, or where it predicts
# that training doubles the loss.
_SHARE = 0.5

# Lanczos iterations for the learning rate warning. They bound κ from below, so no
# warning is false.
_LOOK = 8


def descend(dynamics: AbstractDescent, plan: Plan) -> Solution:
    """Take the steps of `plan`, and issue warnings about them."""
    solution = _as_solution(dynamics, plan, _descend(dynamics, plan))
    lost = solution.result == RESULTS.diverged
    last = solution.stats["last_time"]
    until = solution.valid_until
    if not dynamics.truncated:
        until = jnp.where(lost, last.astype(until.dtype), until)
    if not is_traced(lost, last) and bool(lost & (last == 0)):
        _refuse_if_not_finite(dynamics)
    found = (until, lost, last)
    asked = int(plan.steps.size)
    say(partial(_say_aloud, solution.label, dynamics.truncated, asked), *found)
    return solution


def _refuse_if_not_finite(dynamics: AbstractDescent) -> None:
    """Raise `ValueError` if outputs or gradients are NaN or infinite at step 0."""
    if cause := cause_at_start(dynamics):
        raise ValueError(f"training cannot start: {cause}")


def look_at_rate(dynamics: AbstractDescent, plan: Plan) -> None:
    """Warn if the largest learning rate exceeds the critical one on the first batch."""
    if plan.rates.size == 0:
        return
    rows = slice(None) if plan.rows is None else plan.rows[0]
    x, y = take(dynamics.problem.x_train, rows), dynamics.problem.y_train[rows]
    critical = critical_rate(
        dynamics,
        x,
        y,
        plan.momentum,
        plan.nesterov,
        1e-2,
        _LOOK,
        constant=jax.lax.stop_gradient,
    )
    largest = jnp.max(plan.rates)
    say(_warn_of_rate, critical / largest, largest, critical)


def _warn_of_rate(note: str, ratio: Any, largest: Any, critical: Any) -> None:
    if ratio < 1:
        warn(
            f"rule: the learning rate {largest:.4g} is beyond {critical:.4g}, the "
            "critical rate at initialization: linearized training grows there, and no "
            "truncation follows the network through it; see nth.max_learning_rate."
            f"{note}"
        )


class _Seen(NamedTuple):
    """The values saved at a step."""

    outputs: Float[Array, "m ..."]
    parted: Float[Array, "..."]
    lowered: Float[Array, "..."]


class _Run(NamedTuple):
    outputs: Float[Array, "T m *out"]
    lost: Bool[Array, " T"]
    valid_until: Scalar
    state: State


@eqx.filter_jit
def _descend(dynamics: AbstractDescent, plan: Plan) -> _Run:
    """Every step in one scan; outputs are computed at the requested steps only."""
    state = dynamics.initial_state()
    like = jax.eval_shape(partial(_look, dynamics), state)
    count = len(plan.steps)
    empty = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), like)

    def save(seen: _Seen, slot: Int[Array, ""], state: State) -> _Seen:
        new = jax.lax.cond(
            slot < count,
            partial(_look, dynamics),
            lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like),
            state,
        )
        return jax.tree.map(lambda s, n: s.at[slot].set(n, mode="drop"), seen, new)

    @jax.checkpoint
    def step(carry: Any, now: Any) -> Any:
        state, velocity, seen = carry
        rate, slot, rows = now
        state, velocity = _step(dynamics, plan, state, velocity, rate, rows)
        return (state, velocity, save(seen, slot, state)), None

    still = None
    if plan.momentum is not None:
        still = jax.tree.map(jnp.zeros_like, state)
    carry = (state, still, save(empty, plan.slots[0], state))
    each = (plan.rates, plan.slots[1:], plan.rows)
    (state, _, seen), _ = jax.lax.scan(step, carry, each)
    return _judged(dynamics, plan, seen, state)


def _step(
    dynamics: AbstractDescent,
    plan: Plan,
    state: State,
    velocity: State | None,
    rate: Scalar,
    rows: Int[Array, " b"] | None,
) -> tuple[State, State | None]:
    """θ ← θ − η M v, v ← μ v + G + λ θ; for each coefficient of a series."""
    x, y = dynamics.problem.x_train, dynamics.problem.y_train
    if rows is not None:
        x, y = take(x, rows), y[rows]
    slope = dynamics.slope(state, x, y)
    if velocity is not None:
        velocity = jax.tree.map(lambda v, d: plan.momentum * v + d, velocity, slope)
        if plan.nesterov:
            slope = jax.tree.map(lambda v, d: d + plan.momentum * v, velocity, slope)
        else:
            slope = velocity
    state = jax.tree.map(lambda s, d: s - rate * d, state, dynamics.scaled(slope))
    return state, velocity


def _look(dynamics: AbstractDescent, state: State) -> _Seen:
    """The outputs, their distance from those of the network at the state's parameters,
    and the objective of training: loss plus penalty."""
    outputs = dynamics.outputs(state)
    if not dynamics.truncated:
        zero = jnp.zeros((), outputs.dtype)
        return _Seen(outputs, zero, zero)
    problem = dynamics.problem
    train = outputs[: problem.n_train]
    there = dynamics.over(dynamics.parameters(state), problem.x_train)
    parted = jnp.linalg.norm((there - train).ravel())
    lowered = problem.loss(train, problem.y_train) + dynamics.penalty(state)
    return _Seen(outputs, parted, lowered)


def _judged(dynamics: AbstractDescent, plan: Plan, seen: _Seen, state: State) -> _Run:
    """Where the run diverged, and where a truncation left its window."""
    start = _look(dynamics, dynamics.initial_state())
    flat = seen.outputs.reshape(len(plan.steps), -1)
    lost = ~jnp.all(jnp.isfinite(flat), axis=1)
    out = jnp.zeros_like(lost)
    if dynamics.truncated:
        limit = largest_outputs(dynamics, start.outputs)
        lost = lost | (jnp.max(jnp.abs(flat), axis=1) > limit)
        out = lost | _out_of_window(dynamics, seen, start)
    lost = jax.lax.cummax(lost.astype(jnp.int32)).astype(bool)
    first = plan.steps[jnp.argmax(out)].astype(flat.dtype)
    kept = jnp.expand_dims(~lost, range(1, seen.outputs.ndim))
    return _Run(
        outputs=jnp.where(kept, seen.outputs, jnp.nan),
        lost=lost,
        valid_until=jnp.where(jnp.any(out), first, jnp.inf),
        state=state,
    )


def _out_of_window(
    dynamics: AbstractDescent, seen: _Seen, start: _Seen
) -> Bool[Array, " T"]:
    """The requested steps at which a truncation is outside its window."""
    train = slice(0, dynamics.problem.n_train)
    moved = seen.outputs[:, train] - start.outputs[None, train]
    moved = jnp.linalg.norm(moved.reshape(len(moved), -1), axis=1)
    size = jnp.linalg.norm(start.outputs[train].ravel())
    rounding = jnp.finfo(size.dtype).eps ** 0.5 * size
    parted = seen.parted > _SHARE * jax.lax.cummax(moved) + rounding
    at_start = dynamics.problem.loss(start.outputs[train], dynamics.problem.y_train)
    risen = seen.lowered - start.lowered > at_start
    return parted | (risen & (moved > rounding))


def _as_solution(dynamics: AbstractDescent, plan: Plan, run: _Run) -> Solution:
    problem = dynamics.problem
    train, test = jnp.split(run.outputs, [problem.n_train], axis=1)
    number = jnp.asarray(len(plan.rates))
    left = jnp.isfinite(run.valid_until)
    unknown = jnp.full(len(plan.steps), jnp.nan, run.outputs.dtype)
    ended = RESULTS.where(left, RESULTS.left_window, RESULTS.successful)
    ended = RESULTS.where(jnp.any(run.lost), RESULTS.diverged, ended)
    return Solution(
        ts=plan.steps,
        train=train,
        test=test,
        loss=jax.vmap(problem.loss, in_axes=(0, None))(train, problem.y_train),
        valid_until=run.valid_until,
        error_estimate=unknown,
        error_share=unknown,
        result=ended,
        state=run.state,
        counts={
            "num_steps": number,
            "num_evaluations": number,
            "last_time": jnp.max(jnp.where(run.lost, 0, plan.steps)),
        },
        label=dynamics.label,
        method=dynamics.method if dynamics.truncated else "gradient descent",
    )


def _say_aloud(
    label: str,
    truncated: bool,
    asked: int,
    note: str,
    valid_until: Any,
    lost: Any,
    last: Any,
) -> None:
    """Warn once if training diverged or a truncation left its window."""
    nan = f"from the requested step after {last} on they are NaN"
    if not truncated and lost:
        kind = RuntimeWarning
        warn(f"the {label}'s training diverges to infinite outputs: {nan}.{note}", kind)
    if truncated and np.isfinite(valid_until):
        warn(
            f"the {label} left its window at step {valid_until:.0f}, as far as the "
            f"{asked} requested steps show: its outputs part from the network at the "
            "parameters that it predicts, or double the loss. Later values are no "
            "predictions"
            f"{f', and {nan}' if lost else ''}; see Solution.valid_until."
            f"{note}"
        )
