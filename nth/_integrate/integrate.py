"""Integration of dynamics by diffrax."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._internal.checkpoint import Checkpoint, fingerprint
from .._internal.precision import full_precision
from .._internal.validation import all_finite
from .._solution.results import RESULTS
from .._solution.solution import Solution
from .checks import checked_times
from .choice import SolverOption, choose
from .controller import default_controller
from .estimates import Reached, at_start, estimate_of
from .options import (
    IntegrateOptions as IntegrateOptions,
    check_options as check_options,
    is_adaptive,
)
from .outcome import report, result_of
from .piece import solve_piece, solved_functions
from .progress import as_meter
from .restarts import (
    Budget,
    Restarting,
    first_expansion,
    output_rate,
    rebased,
    until,
    with_restart_times,
)
from .segments import Piece, from_time_to_time


@full_precision
def integrate(
    dynamics: AbstractDynamics,
    ts: ArrayLike | Sequence[float],
    *,
    solver: SolverOption = "auto",
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: ArrayLike | None = None,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    max_steps: int = 2**16,
    progress: bool | diffrax.AbstractProgressMeter = True,
    checkpoint: str | os.PathLike[str] | None = None,
    save_fn: Callable[[Scalar, State, Any], PyTree[Array]] | None = None,
    throw: bool = True,
    until_error: float | None = None,
    restart: bool = False,
) -> Solution:
    """Integrate `dynamics` from t = 0 and return its outputs at the times `ts`.

    **Arguments:**

    - `dynamics`: [`nth.DenseHierarchy`][], [`nth.MatrixFreeHierarchy`][],
        [`nth.GradientFlow`][], or a user-defined dynamics.
    - `ts`: times, shape `(T,)`, increasing and nonnegative. Training starts at
        t = 0, whether or not `ts` contains it. Time is in units of 1/(learning rate).
    - `solver`: a diffrax solver for ordinary differential equations, explicit or
        implicit, or `"auto"`, which selects one by the fastest rate ρ of the linearized
        dynamics: `diffrax.Tsit5()` for times up to 100/ρ; beyond, the cheapest of
        [`nth.DenseExponential`][], [`nth.DenseRosenbrock`][], [`nth.ROCK4`][] and
        [`nth.LowRankRosenbrock`][].
        Under transformations of JAX, with fixed steps, and for dynamics without a
        kernel it is `diffrax.Tsit5()`. A loss whose derivative jumps is averaged over
        output intervals of width 1e-3, and solved by `DenseRosenbrock` or
        [`nth.LowRankRosenbrock`][]. `Solution.stats["solver"]` is the solver used.
    - `stepsize_controller`: a diffrax step size controller; by default a
        `PIDController` with `dynamics.error_norm` and tolerances rtol, atol of 1e-7,
        1e-9 in float64 and 1e-5, 1e-6 in float32 and for averaged losses. With
        Runge–Kutta methods the default relaxes the tolerances at kinks, such as those
        of ReLU networks, up to a relative tolerance of 2e-4.
    - `dt0`: the size of the first step, by default chosen by the controller; with
        `diffrax.ConstantStepSize()` the size of every step, which is then required.
    - `adjoint`: a diffrax adjoint. The default supports `jax.grad`; `jax.jvp` and
        `jax.jacfwd` need `diffrax.ForwardMode()`.
    - `max_steps`: the number of steps after which the solve fails; with `checkpoint`,
        it applies from one requested time to the next.
    - `progress`: whether to show a progress bar once the solve has taken 5 seconds, or
        a diffrax progress meter. There is no bar under a transformation of JAX.
    - `checkpoint`: a file to save to at each requested time. An interrupted
        run continues from there when it is started again, with the same result. Not
        available under `jax.jit`.
    - `save_fn`: a function `save_fn(t, state, args)`, like `fn` of `diffrax.SaveAt`,
        whose values at `ts` are returned in `Solution.saved`: a floating array or a
        pytree of them, such as `lambda t, state, args: dynamics.ntk(state)`. `args` is
        `None`.
    - `throw`: whether a failed solve raises an error. Otherwise its values at times
        that it did not reach are NaN, and `result` gives the cause.
    - `until_error`: end the solve where `Solution.error_estimate` reaches this number:
        values at later times are NaN.
    - `restart`: with `until_error` and a [`nth.MatrixFreeHierarchy`][], expand the
        series again around the parameters reached, θ₀ + Σ_k u_k, so often that the
        estimates of all parts together stay near or below `until_error` up to the last
        time. `Solution.restarts` holds the times. Not under transformations of JAX.

    With `checkpoint` or `restart` the solver stops at each of `ts`; otherwise it steps
    over them and interpolates. The two agree to within its tolerance.

    A truncation that leaves its window is integrated up to the last time if possible,
    and gives one warning, [`nth.WindowWarning`][]; `valid_until` is the time. If that
    is not possible, because its outputs exceed a million times their initial scale or
    the steps become too small, later values are NaN, and no error is raised.

    **Returns:** [`nth.Solution`][].

    **Raises:** `ValueError` for invalid times, incompatible options, or a
    checkpoint that is damaged, belongs to another solve or cannot be written;
    `RuntimeError` with the cause, if `throw`, for a solve that failed inside the
    window. Under `jax.jit` both are raised as JAX run-time errors with the same
    messages.
    """
    options: IntegrateOptions = {
        "solver": solver,
        "stepsize_controller": stepsize_controller,
        "dt0": dt0,
        "adjoint": adjoint,
        "max_steps": max_steps,
        "progress": progress,
        "checkpoint": checkpoint,
        "save_fn": save_fn,
        "throw": throw,
        "until_error": until_error,
        "restart": restart,
    }
    times = checked_times(dynamics, ts, options)
    choice = choose(dynamics, times, solver, is_adaptive(stepsize_controller))
    if stepsize_controller is None:
        stepsize_controller = default_controller(choice, times)
    dt0 = None if dt0 is None else jnp.asarray(dt0, times.dtype)
    steps = (choice.solver, stepsize_controller, dt0)
    budget = None
    if until_error is not None:
        budget = Budget(jnp.asarray(until_error, times.dtype))
    settings = (*steps, adjoint, max_steps, save_fn, budget)
    file = None
    if checkpoint is not None:
        limits = (*steps, until_error, restart)
        file = _file(checkpoint, choice.dynamics, times, limits, save_fn)
    if file is None and not restart:
        piece = _in_one_piece(choice.dynamics, times, settings, progress)
    else:
        in_parts = _with_restarts if restart else _with_checkpoint
        piece = in_parts(choice.dynamics, times, settings, progress is not False, file)
    name = type(choice.solver).__name__
    limit = None if budget is None else budget.tolerance
    solution = _as_solution(dynamics, times, piece, name, limit, restart)
    if restart:
        solution = with_restart_times(solution, piece)
    return report(dynamics, solution, throw, max_steps)


def _in_one_piece(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
    progress: bool | diffrax.AbstractProgressMeter,
) -> Piece:
    start = at_start(dynamics, settings[0])
    meter = as_meter(progress, dynamics.label, (dynamics, start.state, ts))
    return solve_piece(dynamics, start, jnp.zeros_like(ts[0]), ts, (*settings, meter))


def _with_restarts(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
    shown: bool,
    file: Checkpoint | None,
) -> Piece:
    """The solve from one requested time to the next, in parts with small errors."""
    assert isinstance(dynamics, MatrixFreeHierarchy)  # by `require_estimate`
    *steps, save_fn, budget = settings
    budget = Budget(budget.tolerance, output_rate(dynamics), last=ts[-1])

    def solve(
        dynamics: MatrixFreeHierarchy,
        reached: Reached,
        start: Scalar,
        ts: Float[Array, " T"],
        *varied: Any,
    ) -> Piece:
        part = (*steps, *varied, diffrax.NoProgressMeter())
        return solve_piece(dynamics, reached, start, ts, part)

    run = Restarting(dynamics, budget, solve, save_fn)
    piece = from_time_to_time(run, dynamics, ts, file, shown, first_expansion(dynamics))
    state = rebased(piece.state.state, piece.state.expansion.params)
    return piece._replace(state=piece.state._replace(state=state))


def _with_checkpoint(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
    shown: bool,
    file: Checkpoint | None,
) -> Piece:
    """The solve from one requested time to the next, each saved to `file`."""
    run = partial(
        solve_piece, dynamics, settings=(*settings, diffrax.NoProgressMeter())
    )
    start = at_start(dynamics, settings[0])
    return from_time_to_time(run, dynamics, ts, file, shown, start)


def _file(
    path: str | os.PathLike[str],
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    steps: tuple[Any, ...],
    save_fn: Any,
) -> Checkpoint:
    # A function is identified by what it computes: the name of a lambda is not unique.
    traced, *_ = eqx.filter_make_jaxpr(solved_functions)(
        dynamics, ts[0], dynamics.initial_state(), save_fn
    )
    return Checkpoint(
        path, fingerprint(dynamics, ts, steps, (str(traced), traced.consts))
    )


@eqx.filter_jit
def _as_solution(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    piece: Piece,
    solver: str,
    limit: Scalar | None,
    restart: bool,
) -> Solution:
    problem = dynamics.problem
    start = dynamics.outputs(dynamics.initial_state())
    event, over = RESULTS.diverged, jnp.asarray(False)
    if restart:
        event = RESULTS.max_restarts_reached
    elif limit is not None:
        event = RESULTS.error_reached
        piece, over = until(piece, limit)
    train, test = jnp.split(piece.saved["outputs"], [problem.n_train], axis=1)
    loss = jax.vmap(problem.loss, in_axes=(0, None))(train, problem.y_train)
    left = jnp.isfinite(piece.valid_until)
    result = result_of(piece.result, left, all_finite(train, test, loss), event)
    result = RESULTS.where(over, RESULTS.error_reached, result)
    estimate = estimate_of(piece.saved["errors"], piece.saved["outputs"], start)
    return Solution(
        ts=ts,
        train=train,
        test=test,
        loss=loss,
        valid_until=piece.valid_until,
        result=result,
        state=piece.state.state,
        counts=piece.counts,
        label=dynamics.label,
        method=dynamics.method,
        solver=solver,
        saved=piece.saved["saved"],
        **estimate._asdict(),
    )
