"""Dynamics become a solution: diffrax, the window's end, and what a failure says."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, TypedDict

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._dynamics import AbstractDynamics
from ._errors import (
    WindowWarning,
    as_array,
    is_traced,
    require,
    require_instance,
    require_integer,
)
from ._types import Scalar, State

# Outputs this many times their initial scale are a blow-up: nothing later is computed.
_BLOW_UP = 1e6


class IntegrateOptions(TypedDict, total=False):
    """The options of [`nth.integrate`][], which every solving function takes too."""

    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController | None
    adjoint: diffrax.AbstractAdjoint
    max_steps: int
    progress_meter: diffrax.AbstractProgressMeter
    throw: bool


def check_options(options: IntegrateOptions) -> None:
    """Nothing, if `integrate` takes them: asked before long work begins."""
    if unknown := sorted(options.keys() - IntegrateOptions.__annotations__.keys()):
        known = ", ".join(IntegrateOptions.__annotations__)
        raise TypeError(f"unknown option {unknown[0]!r}: integrate takes {known}.")
    require_integer("max_steps", options.get("max_steps", 1), 1)


class Solution(eqx.Module):
    """Outputs over time, on training and test points.

    Values at times that the solver did not reach are NaN.
    """

    ts: Float[Array, " T"]
    """The requested times."""

    train: Float[Array, "T n *out"]
    """Outputs on the training points."""

    test: Float[Array, "T q *out"]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: Float[Array, " T"]
    """The training loss L of those outputs."""

    valid_until: Scalar
    """The first time that the predicted loss rises, which gradient flow's never does:
    past it the truncation has left its window. ∞ if it never rose. Found between two
    steps of the solver, so as fine as they are."""

    result: diffrax.RESULTS
    """`diffrax.RESULTS`: `successful`, `event_occurred` if the outputs blew up, else
    the cause of failure."""

    stats: dict[str, Any]
    """`num_steps`, `num_accepted_steps`, `num_rejected_steps`, `max_steps` and
    `last_time`, the time that the solver reached."""

    label: str = eqx.field(static=True)
    """What was solved: `"level-3 hierarchy"`, `"network"`."""


def integrate(
    dynamics: AbstractDynamics,
    ts: ArrayLike | Sequence[float],
    *,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    max_steps: int = 2**16,
    progress_meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter(),
    throw: bool = True,
) -> Solution:
    """Integrate `dynamics` from t = 0 and return its outputs at the times `ts`.

    **Arguments:**

    - `dynamics`: [`nth.DenseHierarchy`][], [`nth.GradientFlow`][], or your own.
    - `ts`: times, shape `(T,)`, increasing, from 0 on. Training begins at t = 0,
        whether or not `ts` holds it. Time is in units of 1/(learning rate).
    - `solver`, `progress_meter`: diffrax's.
    - `adjoint`: diffrax's. The default serves `jax.grad`; `jax.jvp` and `jax.jacfwd`
        need `diffrax.ForwardMode()`.
    - `stepsize_controller`: diffrax's; by default a `PIDController` with
        `dynamics.error_norm` and tolerances rtol, atol of 1e-7, 1e-9 in float64 and
        1e-5, 1e-6 in float32.
    - `max_steps`: steps after which the solve fails.
    - `throw`: whether a failed solve raises, or hands back what it reached with the
        rest NaN and the cause in `result`.

    A truncation that leaves its window goes on to the last time where it can, and warns
    once, with [`nth.WindowWarning`][]; `valid_until` says when. Where it cannot,
    because its outputs pass a million times their initial scale or because the solver
    fails after the window's end, the values from there on are NaN; that does not raise.

    **Raises:** `ValueError` for bad times; `RuntimeError` with diffrax's reason, if
    `throw`, for a solve that failed inside the window. Under `jax.jit` both come as
    JAX's own run-time errors, with the same words.
    """
    require_instance("dynamics", dynamics, AbstractDynamics, "nth.DenseHierarchy(...)")
    require_instance("solver", solver, diffrax.AbstractSolver, "diffrax.Tsit5()")
    dtype = jnp.result_type(*jax.tree.leaves(dynamics.initial_state()))
    times = check_times(ts, dtype)
    max_steps = require_integer("max_steps", max_steps, 1)
    if stepsize_controller is None:
        rtol, atol = (1e-7, 1e-9) if jnp.finfo(dtype).eps < 1e-10 else (1e-5, 1e-6)
        stepsize_controller = diffrax.PIDController(
            rtol=rtol, atol=atol, norm=dynamics.error_norm
        )
    solution = _solve(
        dynamics, times, solver, stepsize_controller, adjoint, max_steps, progress_meter
    )
    return _say_aloud(solution, throw)


@eqx.filter_jit
def _solve(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController,
    adjoint: diffrax.AbstractAdjoint,
    max_steps: int,
    meter: diffrax.AbstractProgressMeter,
) -> Solution:
    state = dynamics.initial_state()
    saves = {
        "outputs": diffrax.SubSaveAt(ts=ts, fn=lambda t, y, args: dynamics.outputs(y)),
        "steps": diffrax.SubSaveAt(t0=True, steps=True, fn=_loss_rate(dynamics)),
    }
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(dynamics.vector_field),  # pyright: ignore[reportArgumentType]
        solver,
        t0=jnp.zeros_like(ts[0]),
        t1=ts[-1],
        dt0=None,
        y0=state,
        saveat=diffrax.SaveAt(subs=saves),
        stepsize_controller=controller,
        adjoint=adjoint,
        event=diffrax.Event(_blows_up(dynamics, state)),
        max_steps=max_steps,
        throw=False,
        progress_meter=meter,
    )
    assert solved.ts is not None  # as saveat is given: for the type checker
    assert solved.ys is not None
    reached = jnp.isfinite(solved.ts["outputs"])
    outputs = solved.ys["outputs"]
    outputs = jnp.where(
        jnp.expand_dims(reached, range(1, outputs.ndim)), outputs, jnp.nan
    )
    n = dynamics.problem.n_train
    loss = jax.vmap(dynamics.problem.loss, in_axes=(0, None))
    steps = solved.ts["steps"]
    last_time = jnp.max(jnp.where(jnp.isfinite(steps), steps, 0))
    return Solution(
        ts=ts,
        train=outputs[:, :n],
        test=outputs[:, n:],
        loss=loss(outputs[:, :n], dynamics.problem.y_train),
        valid_until=_first_rise(steps, solved.ys["steps"]),
        result=solved.result,
        stats={**solved.stats, "last_time": last_time},
        label=dynamics.label,
    )


def _loss_rate(dynamics: AbstractDynamics):
    """⟨g, df̃/dt⟩ over ‖g‖‖df̃/dt‖: above zero where the predicted loss rises."""

    def rate(t: Scalar, state: State, args: Any) -> Scalar:
        if not dynamics.truncated:
            return jnp.zeros_like(t)
        g, velocity = dynamics.output_rates(t, state)
        size = jnp.linalg.norm(g.ravel()) * jnp.linalg.norm(velocity.ravel())
        safe = jnp.where(size > 0, size, 1)
        return jnp.where(size > 0, jnp.vdot(g, velocity) / safe, 0)

    return rate


def _first_rise(ts: Float[Array, " s"], rates: Float[Array, " s"]) -> Scalar:
    """When `rates` first passes zero, by a line through the two steps around it."""
    # A rate that is zero but for rounding, as at a perfect fit, is not a rise.
    rises = jnp.isfinite(ts) & (rates > jnp.finfo(rates.dtype).eps ** 0.5)
    after = jnp.argmax(rises)
    before = jnp.maximum(after - 1, 0)
    below = jnp.minimum(rates[before], 0)
    rise = rates[after] - below
    share = jnp.where(rises[after], -below / jnp.where(rise > 0, rise, 1), 0)
    first = ts[before] + share * (ts[after] - ts[before])
    return jnp.where(rises[after], first, jnp.inf)


def _blows_up(dynamics: AbstractDynamics, state: State):
    start = dynamics.outputs(state)
    gradient = dynamics.problem.n_train * dynamics.output_gradient(start)
    limit = _BLOW_UP * (jnp.max(jnp.abs(start)) + jnp.max(jnp.abs(gradient)))

    def event(t: Scalar, y: State, args: Any, **kwargs: Any) -> Array:
        return jnp.max(jnp.abs(dynamics.outputs(y))) > limit

    return event


def check_times(ts: ArrayLike | Sequence[float], dtype: Any) -> Float[Array, " T"]:
    """`ts` as times that can be solved for, or a `ValueError`."""
    times = as_array("ts", ts)
    if times.dtype == jnp.bool_:
        raise ValueError("ts must hold numbers; got dtype bool.")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"ts must be a sequence of at least one time; got shape {times.shape}."
        )
    times = times.astype(dtype)
    times = require(times, jnp.isfinite(times), "ts must be finite: it has NaN or inf.")
    times = require(times, times >= 0, "ts must be at least 0, where training begins.")
    return require(
        times,
        jnp.diff(times) > 0,
        f"ts must be increasing, in {jnp.dtype(dtype)}, the dtype of the solve.",
    )


def _say_aloud(solution: Solution, throw: bool) -> Solution:
    """Warn if the window was left; raise if the solve failed inside it and `throw`."""
    successful = solution.result == diffrax.RESULTS.successful
    failed = ~successful & jnp.isinf(solution.valid_until)
    last_time, label = solution.stats["last_time"], solution.label
    if is_traced(solution):
        jax.debug.callback(_warn, label, solution.valid_until, successful, last_time)
        if not throw:
            return solution
        train = solution.result.error_if(solution.train, failed)
        return eqx.tree_at(lambda s: s.train, solution, train)
    if failed and throw:
        raise RuntimeError(
            f"the solve of the {label} failed at t = {last_time:.6g}, short of the "
            f"last time {solution.ts[-1]:.6g}: {diffrax.RESULTS[solution.result]} "
            "Pass throw=False for the values up to there."
        )
    _warn(label, solution.valid_until, successful, last_time)
    return solution


def _warn(label: str, valid_until: Any, successful: Any, last_time: Any) -> None:
    if np.isinf(valid_until):
        return
    lost = "" if successful else f", and from t = {last_time:.4g} on they are NaN"
    warnings.warn(
        f"the {label} left its window at t = {valid_until:.4g}: its predicted loss "
        "rises there, as no gradient flow's does. Later values are no predictions"
        f"{lost}; see Solution.valid_until.",
        WindowWarning,
        stacklevel=_frames_inside() + 1,
    )


def _frames_inside() -> int:
    """How many frames from the caller's out to the last of this package's."""
    package = __name__.partition(".")[0]
    frames = [info.frame for info in inspect.stack(context=0)[1:]]
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    return len(names) - names[::-1].index(package)
