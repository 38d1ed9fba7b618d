"""Options of long runs in steps: what is saved, progress bar and checkpoint."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._integrate.options import check_save_fn
from .._internal.checkpoint import (
    Checkpoint,
    file_of_model,
    fingerprint,
    is_key,
    require_path,
)
from .._internal.progress import delayed_bar
from .._internal.validation import (
    is_traced,
    require_bool,
    require_callable,
)
from .plan import Plan

# Seconds between two writes of a checkpoint.
WRITE_INTERVAL = 5.0


class RunOptions(NamedTuple):
    """Options of a run, as the user gave them."""

    save_fn: Callable[..., PyTree[Array]] | None = None
    progress: bool = True
    checkpoint: str | os.PathLike[str] | None = None

    def checked(self) -> "RunOptions":
        """These options; `ValueError` if one is not valid."""
        if self.save_fn is not None:
            require_callable("save_fn", self.save_fn, "save_fn(step, state, args)")
        require_bool("progress", self.progress)
        if self.checkpoint is not None:
            require_path("checkpoint", self.checkpoint)
        return self

    def checked_save_fn(self, training: Any) -> Callable[..., Any] | None:
        """`save_fn`, which must return floating arrays for a state of `training`."""
        state = training.trained_state(training.initial_state())
        check_save_fn(self.save_fn, jnp.zeros((), int), state)
        if self.checkpoint is not None and is_traced(training, jnp.zeros(())):
            raise ValueError("checkpoint cannot be used under jax.jit.")
        return self.save_fn

    def of_model(self, model: str) -> "RunOptions":
        """With the checkpoint of one model."""
        return self._replace(checkpoint=file_of_model(self.checkpoint, model))


class Progress:
    """The bar and the file of one run."""

    def __init__(self, options: RunOptions, save: Any, plan: Plan, label: str):
        self._file = None
        if options.checkpoint is not None:
            self._file = _file(options.checkpoint, save, plan)
        first = jax.process_index() == 0
        self._writes, self._written = first, time.monotonic()
        self._bar = delayed_bar(
            total=plan.number,
            desc=label,
            unit="step",
            leave=False,
            disable=not (options.progress and first),
        )

    def resumed(self, start: PyTree) -> PyTree:
        """What the file holds, or `start`."""
        if self._file is None:
            return start
        found = self._file.read(_as_data(start))
        if found is None:
            return start
        self._bar.update(int(found[0]))
        return jax.tree.map(_like_key, start, type(start)(*found))

    def reached(self, reached: PyTree, done: int) -> None:
        """Show and save what is reached, after `done` steps."""
        self._bar.update(done - self._bar.n)
        last = done == self._bar.total
        due = last or time.monotonic() - self._written >= WRITE_INTERVAL
        if self._file is not None and due and self._writes:
            self._file.write(_as_data(reached))
            self._written = time.monotonic()

    def close(self) -> None:
        self._bar.close()


def _file(path: str | os.PathLike[str], save: Any, plan: Plan) -> Checkpoint:
    # Functions are identified by what they compute: the name of a lambda is not unique.
    def computed(save: Any) -> Any:
        training = save.training
        state = training.initial_state()
        x, y = training.dynamics.problem.x_train, training.dynamics.problem.y_train
        return training.step(state, x, y), save(jnp.zeros((), int), state)

    traced, *_ = eqx.filter_make_jaxpr(computed)(save)
    arrays = eqx.filter(save, eqx.is_array)
    parts = (jax.tree.leaves(arrays), plan, str(traced), traced.consts)
    return Checkpoint(path, fingerprint(*parts))


def _as_data(tree: PyTree) -> PyTree:
    """`tree` with random keys as the numbers that they are made of."""
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf),
        tuple(tree),
    )


def _like_key(like: Array, data: Any) -> Array:
    if is_key(like):
        implementation = jax.random.key_impl(like)
        return jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)
    return jnp.asarray(data)
