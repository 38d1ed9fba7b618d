"""Checks of the arguments of `nth.integrate`, before expensive work begins."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import State
from .._dynamics.base import AbstractDynamics
from .._internal.validation import is_traced, require_instance, require_times
from .._network.memory import require_memory, tree_bytes
from .options import (
    IntegrateOptions,
    check_options,
    check_save_fn,
    check_step_times,
    refuse_restart,
)
from .piece import saved_values
from .restarts import require_estimate

# Copies of the state that a solver holds: those of seven stages, or of several steps.
_COPIES = 12


def checked_times(
    dynamics: AbstractDynamics, ts: Any, options: IntegrateOptions
) -> Float[Array, " T"]:
    """`ts` in the dtype of the state; `ValueError` for whatever cannot be solved."""
    require_instance("dynamics", dynamics, AbstractDynamics, "nth.DenseHierarchy(...)")
    check_options(options)
    state = dynamics.initial_state()
    _require_state(state)
    times = require_times(ts, jnp.result_type(*jax.tree.leaves(state)))
    check_step_times(options.get("stepsize_controller"), times)
    save_fn = options.get("save_fn")
    check_save_fn(save_fn, times[0], state)
    _require_memory(dynamics, state, times, save_fn)
    traced = is_traced(dynamics, times, state, jnp.zeros(()))
    if options.get("checkpoint") is not None and traced:
        raise ValueError("checkpoint cannot be used under jax.jit.")
    restart = bool(options.get("restart"))
    refuse_restart(restart, traced)
    if options.get("until_error") is not None:
        require_estimate(dynamics, restart)
    return times


def _require_state(state: State) -> None:
    """Raise `ValueError` unless `state` is a pytree of floating arrays."""
    leaves = jax.tree.leaves(state)
    if not leaves or not all(eqx.is_inexact_array(leaf) for leaf in leaves):
        raise ValueError(
            "dynamics: initial_state() must be a pytree of floating JAX arrays; got "
            f"{state!r}."
        )


def _require_memory(
    dynamics: AbstractDynamics, state: State, ts: Float[Array, " T"], save_fn: Any
) -> None:
    """Raise `ValueError` if the saved values and the solver state exceed the memory."""
    saved = eqx.filter_eval_shape(saved_values, dynamics, ts[0], state, save_fn)
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
