"""The plan of discrete training: which steps to show, and the batch of each step."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from .._internal.validation import (
    as_array,
    require,
    require_concrete,
    require_integer,
    require_key,
)
from .._network.memory import require_memory


class Plan(eqx.Module):
    """N steps, as arrays: no value is a compile-time constant."""

    steps: Int[Array, " T"]
    """The requested steps, counted from 0, which is before training."""

    slots: Int[Array, " S"]
    """Where each step's outputs are saved: its place in `steps`, or T for nowhere."""

    rows: Int[Array, "N b"] | None
    """The training points in the batch of each step; `None` for all points."""

    @property
    def number(self) -> int:
        """N."""
        return self.slots.size - 1


def plan(
    steps: int | Sequence[int] | Any,
    n_train: int,
    batch_size: int | None,
    key: PRNGKeyArray | None,
    batches: Any,
) -> Plan:
    """The plan of `steps` on `n_train` points.

    **Raises:** `ValueError` for invalid steps or batches.
    """
    requested = _require_steps(steps)
    number = int(requested[-1])
    slots = np.full(number + 1, len(requested))
    slots[requested] = np.arange(len(requested))
    return Plan(
        steps=jnp.asarray(requested),
        slots=jnp.asarray(slots),
        rows=_rows(number, n_train, batch_size, key, batches),
    )


def _require_steps(steps: int | Sequence[int] | Any) -> np.ndarray:
    """The requested steps: 0 … N for a number N, else an increasing sequence."""
    require_concrete("steps", steps, "discrete training")
    try:
        array = np.asarray(steps)
    except ValueError:  # a ragged sequence
        array = np.empty(0)
    if array.ndim > 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            "steps must be a number of steps, or an increasing sequence of integers; "
            f"got {steps!r}."
        )
    if np.any(array < 0):
        raise ValueError(f"steps must be at least 0; got {array.min()}.")
    if np.any(array[1:] <= array[:-1] if array.ndim else False):
        raise ValueError(f"steps must be increasing; got {steps!r}.")
    number = int(array if array.ndim == 0 else array[-1])
    kept = 64 * number if array.ndim == 0 else 8 * number
    require_memory("steps", f"planning {number} steps", kept, "Give a smaller number.")
    return np.arange(number + 1) if array.ndim == 0 else array.astype(int)


def _rows(
    number: int,
    n_train: int,
    batch_size: int | None,
    key: PRNGKeyArray | None,
    batches: Any,
) -> Int[Array, "N b"] | None:
    """The training points in the batch of each of `number` steps."""
    if batches is not None:
        if batch_size is not None or key is not None:
            raise ValueError(
                "batches are the training points of each step, and batch_size and key "
                "draw them: give one or the other."
            )
        return _require_batches(batches, number, n_train)
    if (batch_size is None) != (key is None):
        raise ValueError(
            "batch_size and key go together: batches are drawn with the key, such as "
            "key=jax.random.key(0)."
        )
    if batch_size is None:
        return None
    reason = "the number of training points"
    size = require_integer("batch_size", batch_size, 1, n_train, reason)
    purpose = f"planning {number} steps with batches of {size}"
    require_memory("steps", purpose, 8 * size * number, "Give a smaller number.")
    return _draw(require_key("key", key), number, n_train, size)


def _require_batches(batches: Any, number: int, n_train: int) -> Int[Array, "N b"]:
    rows = as_array("batches", batches)
    if (
        rows.ndim != 2
        or rows.shape[1] == 0
        or not jnp.issubdtype(rows.dtype, jnp.integer)
    ):
        raise ValueError(
            "batches must be integers of shape (steps, batch size), the training "
            f"points of each step; got shape {rows.shape} and dtype {rows.dtype}."
        )
    if rows.shape[0] != number:
        raise ValueError(
            f"batches must have a row for each of the {number} steps; got "
            f"{rows.shape[0]}."
        )
    message = f"batches must hold the numbers of training points, 0 to {n_train - 1}."
    rows = require(rows, (rows >= 0) & (rows < n_train), message)
    return rows.astype(jnp.result_type(int))


def _draw(key: PRNGKeyArray, number: int, n_train: int, size: int) -> Int[Array, "N b"]:
    """A permutation of the training points for each epoch, cut into batches."""
    per_epoch = n_train // size
    epochs = jnp.arange(max(1, -(-number // per_epoch)))

    def permuted(epoch: Int[Array, ""]) -> Int[Array, "k b"]:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n_train)
        return order[: per_epoch * size].reshape(per_epoch, size)

    return jax.vmap(permuted)(epochs).reshape(-1, size)[:number]
