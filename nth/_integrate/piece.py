"""One call of diffrax: the solve over a time interval."""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics
from .._dynamics.dense import DenseHierarchy
from .._dynamics.dense_terms import rates_at
from .._dynamics.truncation import AbstractTruncation
from .._problem.inputs import require_like
from .counts import counts
from .estimates import (
    Reached,
    dense_errors,
    errors_at,
    node_times,
    terms_by_products,
)
from .restarts import error_event
from .segments import Piece
from .validity import blow_up, first_rise, loss_rate


@eqx.filter_jit
def solve_piece(
    dynamics: AbstractDynamics,
    reached: Reached,
    start: Scalar,
    ts: Float[Array, " T"],
    settings: tuple[Any, ...],
) -> Piece:
    solver, controller, dt0, adjoint, max_steps, save_fn, budget, meter = settings
    event = diffrax.Event(blow_up(dynamics)) if dynamics.truncated else None
    if budget is not None and isinstance(dynamics, AbstractTruncation):
        event = error_event(dynamics, budget)
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(eqx.filter_jit(eqx.Partial(_checked_rate, dynamics))),  # pyright: ignore[reportArgumentType]
        solver,
        t0=start,
        t1=ts[-1],
        dt0=dt0,
        y0=reached.state,
        saveat=diffrax.SaveAt(
            subs=_saves(dynamics, solver, start, ts, save_fn), solver_state=True
        ),
        stepsize_controller=controller,
        adjoint=adjoint,
        event=event,
        max_steps=max_steps,
        throw=False,
        progress_meter=meter,
    )
    piece = _as_piece(dynamics, reached, start, ts, solved, solver)
    if budget is not None:  # an event lies between two steps
        assert solved.ts is not None  # for the type checker: saveat is given
        piece.counts["last_time"] = solved.ts["state"][-1]
    return piece


def _as_piece(
    dynamics: AbstractDynamics,
    reached: Reached,
    start: Scalar,
    ts: Float[Array, " T"],
    solved: diffrax.Solution,
    solver: diffrax.AbstractSolver,
) -> Piece:
    """What diffrax has saved, NaN at times that were not reached."""
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
    dynamics: AbstractDynamics,
    solver: diffrax.AbstractSolver,
    start: Scalar,
    ts: Float[Array, " T"],
    save_fn: Any,
) -> dict[str, diffrax.SubSaveAt]:
    """Outputs at requested times, the rate of the loss at each step, the last state,
    and what the error estimate of the dense form takes from times in between."""
    nodes = {}
    if isinstance(dynamics, DenseHierarchy):
        rates = partial(rates_at, dynamics, by_products=terms_by_products(solver))
        nodes["nodes"] = diffrax.SubSaveAt(
            ts=node_times(dynamics, start, ts), fn=lambda t, y, args: rates(y)
        )
    return {
        **nodes,
        "saved": diffrax.SubSaveAt(
            ts=ts, fn=lambda t, y, args: saved_values(dynamics, t, y, save_fn)
        ),
        "rates": diffrax.SubSaveAt(
            t0=True, steps=True, fn=lambda t, y, args: loss_rate(dynamics, t, y)
        ),
        "state": diffrax.SubSaveAt(t1=True),
    }


@eqx.filter_jit
def saved_values(
    dynamics: AbstractDynamics, t: Scalar, state: State, save_fn: Any
) -> dict[str, Any]:
    saved = None if save_fn is None else save_fn(t, state, None)
    return {
        "outputs": dynamics.outputs(state),
        "errors": errors_at(dynamics, state),
        "saved": saved,
    }


def solved_functions(
    dynamics: AbstractDynamics, t: Scalar, state: State, save_fn: Any
) -> Any:
    return dynamics.vector_field(t, state, None), saved_values(
        dynamics, t, state, save_fn
    )


def _checked_rate(
    dynamics: AbstractDynamics, t: Scalar, state: State, args: Any
) -> State:
    """The vector field, in the structure of `state`: checked while it is traced."""
    rate = dynamics.vector_field(t, state, args)
    require_like("dynamics: vector_field(t, state, args)", rate, state, "the state")
    return rate
