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
from .._dynamics.dense import DenseHierarchy
from .._dynamics.dense_terms import rates_at
from .._internal.checkpoint import Checkpoint, fingerprint
from .._internal.validation import is_traced, require_instance, require_times
from .._network.finiteness import all_finite
from .._network.memory import require_memory, tree_bytes
from .._problem.inputs import require_like
from .._solution.solution import Solution
from .choice import SolverOption, choose
from .controller import default_controller
from .counts import counts
from .estimates import (
    Reached,
    at_start,
    dense_errors,
    errors_at,
    estimate_of,
    node_times,
)
from .options import (
    IntegrateOptions as IntegrateOptions,
    check_options as check_options,
    check_save_fn,
    check_step_times,
    is_adaptive,
)
from .outcome import report, result_of
from .progress import as_meter
from .segments import Piece, from_time_to_time
from .validity import blow_up, first_rise, loss_rate

# Copies of the state that a solver holds: those of seven stages, or of several steps.
_COPIES = 12


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
        [`nth.DenseExponential`][], [`nth.DenseRosenbrock`][] and [`nth.ROCK4`][].
        Under transformations of JAX, with fixed steps, and for dynamics without a
        kernel it is `diffrax.Tsit5()`. A loss whose derivative jumps is averaged over
        output intervals of width 1e-3. `Solution.stats["solver"]` is the solver used.
    - `stepsize_controller`: a diffrax step size controller; by default a
        `PIDController` with `dynamics.error_norm` and tolerances rtol, atol of 1e-7,
        1e-9 in float64 and 1e-5, 1e-6 in float32. With Runge–Kutta methods the default
        relaxes the tolerances at kinks, such as those of ReLU networks, up to a
        relative tolerance of 2e-4.
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

    With `checkpoint` the solver stops at each of `ts`; otherwise it steps over them and
    interpolates. The two agree to within its tolerance.

    A truncation that leaves its window is integrated up to the last time if possible,
    and gives one warning, [`nth.WindowWarning`][]; `valid_until` is the time. If that
    is not possible, because its outputs exceed a million times their initial scale or
    the steps become too small, later values are NaN, and no error is raised.

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
    }
    times = _checked_times(dynamics, ts, options)
    choice = choose(dynamics, times, solver, is_adaptive(stepsize_controller))
    if stepsize_controller is None:
        stepsize_controller = default_controller(choice, times)
    dt0 = None if dt0 is None else jnp.asarray(dt0, times.dtype)
    steps = (choice.solver, stepsize_controller, dt0)
    settings = (*steps, adjoint, max_steps, save_fn)
    if checkpoint is None:
        piece = _in_one_piece(choice.dynamics, times, settings, progress)
    else:
        file = _file(checkpoint, choice.dynamics, times, steps, save_fn)
        piece = _with_checkpoint(choice.dynamics, times, settings, progress, file)
    solution = _as_solution(dynamics, times, piece, type(choice.solver).__name__)
    return report(dynamics, solution, throw, max_steps)


def _checked_times(
    dynamics: AbstractDynamics, ts: Any, options: IntegrateOptions
) -> Float[Array, " T"]:
    """`ts` in the dtype of the state; `ValueError` for whatever cannot be solved."""
    require_instance("dynamics", dynamics, AbstractDynamics, "nth.DenseHierarchy(...)")
    check_options(options)
    state = dynamics.initial_state()
    _require_state(dynamics, state)
    times = require_times(ts, jnp.result_type(*jax.tree.leaves(state)))
    check_step_times(options.get("stepsize_controller"), times)
    save_fn = options.get("save_fn")
    check_save_fn(save_fn, times[0], state)
    _require_memory(dynamics, state, times, save_fn)
    if options.get("checkpoint") is not None and is_traced(
        dynamics, times, state, jnp.zeros(())
    ):
        raise ValueError("checkpoint cannot be used under jax.jit.")
    return times


def _in_one_piece(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
    progress: bool | diffrax.AbstractProgressMeter,
) -> Piece:
    start = at_start(dynamics)
    meter = as_meter(progress, dynamics.label, (dynamics, start.state, ts))
    return _solve(dynamics, start, jnp.zeros_like(ts[0]), ts, (*settings, meter))


def _with_checkpoint(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
    progress: bool | diffrax.AbstractProgressMeter,
    file: Checkpoint,
) -> Piece:
    """The solve from one requested time to the next, each saved to `file`."""
    run = partial(_solve, dynamics, settings=(*settings, diffrax.NoProgressMeter()))
    successful = diffrax.RESULTS.successful
    return from_time_to_time(run, dynamics, ts, file, progress is not False, successful)


def _file(
    path: str | os.PathLike[str],
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    steps: tuple[Any, ...],
    save_fn: Any,
) -> Checkpoint:
    # A function is identified by what it computes: the name of a lambda is not unique.
    traced, *_ = eqx.filter_make_jaxpr(_solved_functions)(
        dynamics, ts[0], dynamics.initial_state(), save_fn
    )
    return Checkpoint(
        path, fingerprint(dynamics, ts, steps, (str(traced), traced.consts))
    )


def _require_state(dynamics: AbstractDynamics, state: State) -> None:
    """Raise `ValueError` unless `state` is a pytree of floating arrays with a norm."""
    leaves = jax.tree.leaves(state)
    if not leaves or not all(eqx.is_inexact_array(leaf) for leaf in leaves):
        raise ValueError(
            "dynamics: initial_state() must be a pytree of floating JAX arrays; got "
            f"{state!r}."
        )
    norm = eqx.filter_eval_shape(dynamics.error_norm, state)
    shape, dtype = getattr(norm, "shape", None), getattr(norm, "dtype", None)
    if shape != () or not jnp.issubdtype(dtype or bool, jnp.floating):
        raise ValueError(
            "dynamics: error_norm(scaled) must be a floating scalar, such as the root "
            f"mean square of all entries; got {norm!r}."
        )


def _checked_rate(
    dynamics: AbstractDynamics, t: Scalar, state: State, args: Any
) -> State:
    """The vector field, in the structure of `state`: checked while it is traced."""
    rate = dynamics.vector_field(t, state, args)
    require_like("dynamics: vector_field(t, state, args)", rate, state, "the state")
    return rate


def _require_memory(
    dynamics: AbstractDynamics, state: State, ts: Float[Array, " T"], save_fn: Any
) -> None:
    """Raise `ValueError` if the saved values and the solver state exceed the memory."""
    saved = eqx.filter_eval_shape(_saved, dynamics, ts[0], state, save_fn)
    points = dynamics.problem.n_train + dynamics.problem.n_test
    shape = getattr(saved["outputs"], "shape", None)
    if shape is None or shape[:1] != (points,):
        raise ValueError(
            f"dynamics: outputs(state) must be an array with one row for each of the "
            f"{points} points of problem; got "
            f"{saved['outputs'] if shape is None else f'shape {shape}'}."
        )
    require_memory(
        "ts",
        f"a solve of the {dynamics.label} with values saved at {len(ts)} times",
        len(ts) * tree_bytes(saved) + _COPIES * tree_bytes(state),
        "Give fewer times, use fewer points or float32, or let save_fn return less.",
    )


@eqx.filter_jit
def _solve(
    dynamics: AbstractDynamics,
    reached: Reached,
    start: Scalar,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
) -> Piece:
    solver, controller, dt0, adjoint, max_steps, save_fn, meter = settings
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(eqx.filter_jit(eqx.Partial(_checked_rate, dynamics))),  # pyright: ignore[reportArgumentType]
        solver,
        t0=start,
        t1=ts[-1],
        dt0=dt0,
        y0=reached.state,
        saveat=diffrax.SaveAt(
            subs=_saves(dynamics, start, ts, save_fn), solver_state=True
        ),
        stepsize_controller=controller,
        adjoint=adjoint,
        event=diffrax.Event(blow_up(dynamics)) if dynamics.truncated else None,
        max_steps=max_steps,
        throw=False,
        progress_meter=meter,
    )
    assert solved.ts is not None  # for the type checker: saveat is given
    assert solved.ys is not None
    steps, saved = solved.ts["rates"], solved.ys["saved"]
    integrals = reached.integrals
    if isinstance(dynamics, DenseHierarchy):
        known = (start, ts, integrals, solved.ys["nodes"], saved["outputs"])
        errors, integrals = dense_errors(dynamics, *known)
        saved = {**saved, "errors": errors}
    there = jnp.isfinite(solved.ts["saved"])

    def where_reached(leaf: Array) -> Array:
        return jnp.where(jnp.expand_dims(there, range(1, leaf.ndim)), leaf, jnp.nan)

    last_time = jnp.max(jnp.where(jnp.isfinite(steps), steps, start))
    state = jax.tree.map(lambda leaf: leaf[-1], solved.ys["state"])
    return Piece(
        saved=jax.tree.map(where_reached, saved),
        valid_until=first_rise(steps, solved.ys["rates"]),
        counts={
            **counts(solver, dynamics, solved.stats, solved.solver_state),
            "last_time": last_time,
        },
        state=Reached(state, integrals),
        result=solved.result,
    )


def _saves(
    dynamics: AbstractDynamics, start: Scalar, ts: Float[Array, " T"], save_fn: Any
) -> dict[str, diffrax.SubSaveAt]:
    """Outputs at requested times, the rate of the loss at each step, the last state,
    and what the error estimate of the dense form takes from times in between."""
    nodes = {}
    if isinstance(dynamics, DenseHierarchy):
        times = node_times(dynamics, start, ts)
        rates = diffrax.SubSaveAt(ts=times, fn=lambda t, y, args: rates_at(dynamics, y))
        nodes = {"nodes": rates}
    return {
        **nodes,
        "saved": diffrax.SubSaveAt(
            ts=ts, fn=lambda t, y, args: _saved(dynamics, t, y, save_fn)
        ),
        "rates": diffrax.SubSaveAt(
            t0=True, steps=True, fn=lambda t, y, args: loss_rate(dynamics, t, y)
        ),
        "state": diffrax.SubSaveAt(t1=True),
    }


@eqx.filter_jit
def _saved(
    dynamics: AbstractDynamics, t: Scalar, state: State, save_fn: Any
) -> dict[str, Any]:
    saved = None if save_fn is None else save_fn(t, state, None)
    return {
        "outputs": dynamics.outputs(state),
        "errors": errors_at(dynamics, state),
        "saved": saved,
    }


def _solved_functions(
    dynamics: AbstractDynamics, t: Scalar, state: State, save_fn: Any
) -> Any:
    return dynamics.vector_field(t, state, None), _saved(dynamics, t, state, save_fn)


@eqx.filter_jit
def _as_solution(
    dynamics: AbstractDynamics, ts: Float[Array, " T"], piece: Piece, solver: str
) -> Solution:
    problem = dynamics.problem
    train, test = jnp.split(piece.saved["outputs"], [problem.n_train], axis=1)
    loss = jax.vmap(problem.loss, in_axes=(0, None))(train, problem.y_train)
    left = jnp.isfinite(piece.valid_until)
    start = dynamics.outputs(dynamics.initial_state())
    estimate = estimate_of(piece.saved["errors"], piece.saved["outputs"], start)
    return Solution(
        ts=ts,
        train=train,
        test=test,
        loss=loss,
        valid_until=piece.valid_until,
        result=result_of(piece.result, left, all_finite(train, test, loss)),
        state=piece.state.state,
        counts=piece.counts,
        label=dynamics.label,
        method=dynamics.method,
        solver=solver,
        saved=piece.saved["saved"],
        **estimate._asdict(),
    )
