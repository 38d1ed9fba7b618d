"""Options of `nth.integrate`, and checks of them before expensive work begins."""

import os
import typing
from collections.abc import Callable
from typing import Any, TypedDict

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._custom_types import Scalar, State
from .._internal.checkpoint import require_path
from .._internal.validation import (
    is_traced,
    near_match,
    require_bool,
    require_callable,
    require_instance,
    require_integer,
    require_name,
    require_positive,
    require_scale,
)
from .._network.memory import available_bytes
from .choice import SolverOption

# Steps are counted in 32 bits.
_MOST_STEPS = 2**31 - 1

# The options for fixed steps.
CONSTANT_STEPS = "stepsize_controller=diffrax.ConstantStepSize(), dt0=0.1"


class IntegrateOptions(TypedDict, total=False):
    """The options of [`nth.integrate`][], shared by all continuous-time solves."""

    solver: SolverOption
    stepsize_controller: diffrax.AbstractStepSizeController | None
    dt0: Any
    adjoint: diffrax.AbstractAdjoint
    max_steps: int
    progress: bool | diffrax.AbstractProgressMeter
    checkpoint: str | os.PathLike[str] | None
    save_fn: Callable[[Scalar, State, Any], PyTree[Array]] | None
    throw: bool
    until_error: float | None
    restart: bool


def check_options(options: IntegrateOptions) -> None:
    """Check the options, as far as possible without the dynamics.

    **Raises:** `TypeError` for an unknown option, as for any unknown keyword argument;
    `ValueError` for an invalid value, or for incompatible options.
    """
    for name, value in options.items():
        if name not in _CHECKS:
            raise TypeError(
                f"unknown option {name!r}.{near_match(name, _CHECKS)} The options of "
                f"the solve are {', '.join(_CHECKS)}."
            )
        _CHECKS[name](value)
    check_until_error(options.get("until_error"), options.get("restart", False))
    controller = _innermost(options.get("stepsize_controller"))
    adaptive = is_adaptive(controller)
    solver = options.get("solver", "auto")
    if isinstance(solver, str):
        solver = None
    if adaptive:
        _require_error_estimate(solver)
    else:
        _require_fixed_steps(solver, controller, options)


def _check_solver(solver: Any) -> None:
    if isinstance(solver, str):
        require_name("solver", solver, ("auto",))
        return
    require_instance("solver", solver, diffrax.AbstractSolver, "diffrax.Tsit5()")
    structure = solver.term_structure
    kind = typing.get_origin(structure) or structure
    if not (isinstance(kind, type) and issubclass(diffrax.ODETerm, kind)):
        raise ValueError(
            f"solver: diffrax.{type(solver).__name__} is for equations in several "
            "parts (stochastic, split or symplectic), and training is a single "
            "ordinary differential equation. Use a solver for these, such as "
            "diffrax.Tsit5(), or diffrax.Kvaerno5() if it is stiff."
        )


def _check_controller(controller: Any) -> None:
    if controller is not None:
        kind = diffrax.AbstractStepSizeController
        example = "diffrax.PIDController(rtol=1e-7, atol=1e-9)"
        require_instance("stepsize_controller", controller, kind, example)
        for name in ("rtol", "atol"):
            value = getattr(_innermost(controller), name, None)
            if isinstance(value, int | float):
                require_scale(f"{name} of stepsize_controller", value)


def _check_first_step(dt0: Any) -> None:
    if dt0 is not None and not is_traced(dt0):
        require_positive("dt0", dt0)


def _check_adjoint(adjoint: Any) -> None:
    example = "diffrax.RecursiveCheckpointAdjoint()"
    require_instance("adjoint", adjoint, diffrax.AbstractAdjoint, example)
    if isinstance(adjoint, diffrax.BacksolveAdjoint | diffrax.ImplicitAdjoint):
        raise ValueError(
            f"adjoint: diffrax.{type(adjoint).__name__} does not save values between "
            "the first and the last time, which the solve needs. Use "
            f"{example} for reverse mode (the default), diffrax.ForwardMode() for "
            "forward mode, or diffrax.DirectAdjoint() for both."
        )


def _check_max_steps(max_steps: Any) -> None:
    count = require_integer("max_steps", max_steps, 1)
    needed = 16 * count  # a time and a loss rate for each step
    if count > _MOST_STEPS or needed > available_bytes() / 2:
        raise ValueError(
            f"max_steps: the values kept for {count} steps take {needed / 2**30:,.1f} "
            f"GiB. Give a smaller number; the default is {2**16}."
        )


def _check_progress(progress: Any) -> None:
    if not isinstance(progress, diffrax.AbstractProgressMeter):
        require_bool("progress", progress)


def _check_file(path: Any) -> None:
    if path is not None:
        require_path("checkpoint", path)


def _check_save_fn(save_fn: Any) -> None:
    if save_fn is not None:
        require_callable("save_fn", save_fn, "save_fn(t, state, args)")


def _check_until_error(until_error: Any) -> None:
    if until_error is not None:
        require_positive("until_error", until_error)


def refuse_restart(restart: bool, traced: bool) -> None:
    """Raise `ValueError` if a solve with restarts is traced."""
    if restart and traced:
        raise ValueError(
            "restart cannot be used under jax.jit, jax.vmap or jax.grad, since the "
            "number of restarts is known at run time only."
        )


def check_until_error(until_error: Any, restart: Any) -> None:
    """Raise `ValueError` unless `restart` comes with an error that may be reached."""
    _check_until_error(until_error)
    require_bool("restart", restart)
    if restart and until_error is None:
        raise ValueError(
            "restart needs until_error, the estimated error that may be reached: for "
            "instance until_error=1e-3."
        )


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "solver": _check_solver,
    "stepsize_controller": _check_controller,
    "dt0": _check_first_step,
    "adjoint": _check_adjoint,
    "max_steps": _check_max_steps,
    "progress": _check_progress,
    "checkpoint": _check_file,
    "save_fn": _check_save_fn,
    "throw": lambda value: require_bool("throw", value),
    "until_error": _check_until_error,
    "restart": lambda value: require_bool("restart", value),
}


def is_adaptive(controller: Any) -> bool:
    """Whether the steps are chosen by an error estimate, as by default."""
    controller = _innermost(controller)
    adaptive = diffrax.AbstractAdaptiveStepSizeController
    return controller is None or isinstance(controller, adaptive)


def _innermost(controller: Any) -> Any:
    """The controller that chooses the steps, without wrappers that only clip them."""
    while isinstance(controller, diffrax.ClipStepSizeController):
        controller = controller.controller
    return controller


def _require_error_estimate(solver: Any) -> None:
    """Raise unless the solver, `None` for the default, has an error estimate."""
    if solver is not None and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        name = type(solver).__name__
        raise ValueError(
            f"solver: diffrax.{name} has no error estimate for adaptive steps. "
            f"Use fixed steps, {CONSTANT_STEPS}, or wrap the solver, "
            f"diffrax.HalfSolver(diffrax.{name}())."
        )


def _require_fixed_steps(
    solver: Any, controller: Any, options: IntegrateOptions
) -> None:
    """Raise unless the options determine the steps of a fixed-step solve."""
    dt0 = options.get("dt0")
    if isinstance(controller, diffrax.ConstantStepSize) and dt0 is None:
        raise ValueError(
            "dt0 must be given with diffrax.ConstantStepSize(): it is the step, for "
            f"instance {CONSTANT_STEPS}."
        )
    if isinstance(controller, diffrax.StepTo):
        if dt0 is not None:
            raise ValueError(
                "dt0 and diffrax.StepTo(ts) both set the steps: leave out dt0, or use "
                f"{CONSTANT_STEPS}."
            )
        if options.get("checkpoint") is not None:
            raise ValueError(
                "stepsize_controller: with a checkpoint the solver stops at each of "
                "ts, which diffrax.StepTo cannot do. Use fixed steps, "
                f"{CONSTANT_STEPS}."
            )
    while isinstance(solver, diffrax.HalfSolver):
        solver = solver.solver
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        # By default diffrax uses the tolerances of an adaptive controller.
        rtol = getattr(solver.root_finder, "rtol", 0.0)
        if not isinstance(rtol, int | float | np.generic | jax.Array):
            name = type(solver).__name__
            raise ValueError(
                f"solver: with fixed steps diffrax.{name} needs tolerances for its "
                f"equations: diffrax.{name}(root_finder=diffrax.VeryChord(rtol=1e-8, "
                "atol=1e-8))."
            )


def check_step_times(controller: Any, ts: Float[Array, " T"]) -> None:
    """Raise unless the times of a `diffrax.StepTo` run from 0 to the last of `ts`."""
    controller = _innermost(controller)
    if not isinstance(controller, diffrax.StepTo) or is_traced(controller, ts):
        return
    steps = np.asarray(controller.ts)
    if steps[0] != 0 or steps[-1] != ts[-1] or not np.all(np.diff(steps) > 0):
        raise ValueError(
            "stepsize_controller: the times of diffrax.StepTo must increase from 0 to "
            f"the last of ts, {float(ts[-1])!r}; they run from {steps[0]} to "
            f"{steps[-1]}."
        )


def check_save_fn(save_fn: Any, t: Scalar | Int[Array, ""], state: State) -> None:
    """Raise unless `save_fn` returns floating-point arrays for such a state."""
    if save_fn is None:
        return
    try:
        saved = eqx.filter_eval_shape(save_fn, t, state, None)
    except Exception as error:
        raise ValueError(
            "save_fn: save_fn(t, state, args) failed for the state of the dynamics: "
            f"{error}"
        ) from error
    for leaf in jax.tree.leaves(saved):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                "save_fn must return floating arrays, in a pytree; got "
                f"{type(leaf).__name__ if dtype is None else dtype}."
            )
