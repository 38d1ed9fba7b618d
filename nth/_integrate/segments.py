"""Integration from one requested time to the next, with checkpoint and progress bar."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics
from .._internal.checkpoint import Checkpoint, is_spread, on_host
from .estimates import Reached
from .progress import fraction_bar


class Piece(NamedTuple):
    """The result for a time interval; `saved` is NaN where not reached."""

    saved: dict[str, PyTree[Float[Array, "T ..."]]]
    valid_until: Scalar
    counts: dict[str, Array]
    state: State
    result: Any


class _Progress(NamedTuple):
    """The content of a checkpoint: the number of times reached, and their results."""

    done: Any
    saved: Any
    valid_until: Any
    counts: dict[str, Any]
    state: State


def from_time_to_time(
    run: Callable[..., Piece],
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    file: Checkpoint | None,
    progress: bool,
    initial: Reached,
) -> Piece:
    """Solve by `run` from each requested time to the next, saving to `file` after each.

    `initial` is what the first interval starts from.
    """
    spread = is_spread((dynamics, dynamics.initial_state()))
    leads = not spread or jax.process_index() == 0
    known = _restored(run, initial, ts, file, spread)
    hidden = not (progress and leads)
    bar = fraction_bar(float(ts[-1]), dynamics.label, hidden)
    _show(bar, known.counts)
    result = diffrax.RESULTS.successful
    for i in range(int(known.done), len(ts)):
        start = ts[i - 1] if i else jnp.zeros_like(ts[0])
        piece = run(jax.tree.map(jnp.asarray, known.state), start, ts[i : i + 1])
        known, result = _extended(known, piece), piece.result
        _show(bar, known.counts)
        if result != diffrax.RESULTS.successful:
            break
        if file is not None:
            reached = on_host(tuple(known))
            if leads:
                file.write(reached)
    bar.close()
    kept = jax.tree.map(jnp.asarray, tuple(known)[1:])
    return Piece(*kept, result=result)


def _restored(
    run: Callable[..., Piece],
    state: Reached,
    ts: Float[Array, " T"],
    file: Checkpoint | None,
    spread: bool,
) -> _Progress:
    """The content of `file`, or the initial values if there is none."""
    first = jax.eval_shape(run, state, ts[0], ts[:1])
    saved = jax.tree.map(
        lambda leaf: np.full((len(ts), *leaf.shape[1:]), np.nan, leaf.dtype),
        first.saved,
    )
    counts = {name: np.zeros((), leaf.dtype) for name, leaf in first.counts.items()}
    known: Any = (np.zeros((), int), saved, np.asarray(np.inf, ts.dtype), counts, state)
    if file is not None:
        known = file.read((*known[:-1], first.state)) or known
        if not 0 <= int(known[0]) <= len(ts):
            raise file.damaged(f"it has {known[0]} of {len(ts)} times")
        if spread:
            message = "checkpoint: the processes see different files; share one folder."
            multihost_utils.assert_equal(known[0], message)
    return _Progress(*known)


def _extended(known: _Progress, piece: Piece) -> _Progress:
    """The results so far, extended by one interval."""
    for kept, new in zip(
        *map(jax.tree.leaves, (known.saved, piece.saved)), strict=True
    ):
        kept[int(known.done)] = on_host(new)[0]
    counts = {name: known.counts[name] + new for name, new in piece.counts.items()}
    counts["last_time"] = np.asarray(piece.counts["last_time"])
    valid_until = np.minimum(known.valid_until, piece.valid_until)
    return _Progress(known.done + 1, known.saved, valid_until, counts, piece.state)


def _show(bar: tqdm, counts: dict[str, Any]) -> None:
    evaluations = counts.get("num_evaluations", "?")
    bar.set_postfix_str(f"{evaluations} evaluations", refresh=False)
    bar.update(float(counts["last_time"]) - bar.n)
