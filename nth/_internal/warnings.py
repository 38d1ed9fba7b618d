"""Warnings at the user's line, also from compiled and batched functions."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from .validation import is_traced


class WindowWarning(UserWarning):
    """A prediction was requested past the window in which its truncation is valid."""


class AccuracyWarning(WindowWarning):
    """The estimated error of a prediction passed half of the change that it predicts.

    Issued once for a solve, at the first requested time where the `error_share` of
    [`nth.Solution`][] exceeds 0.5, unless the prediction left its window.
    """


def warn(message: str, category: type[Warning] = WindowWarning) -> None:
    """Warn at the user's line."""
    warnings.warn(message, category, stacklevel=_frames_inside() + 1)


def call_with_values(function: Callable[..., None], *values: Array) -> None:
    """Call `function(note, *values)`, at run time if `values` are traced.

    Under `jax.vmap` there is one call for the whole batch, for the member with the
    smallest first value; `note` states the batch size.
    """
    if is_traced(values):
        _call_back(partial(_call_for_worst, function), *jax.lax.stop_gradient(values))
    else:
        function("", *values)


def _call_for_worst(function: Callable[..., None], *values: Any) -> None:
    first = np.ravel(values[0])
    worst = int(np.argmin(first))
    note = f" It is the worst of {first.size} in this batch." if first.size > 1 else ""
    function(note, *(np.ravel(value)[worst] for value in values))


def _call_back(function: Callable[..., None], *values: Array) -> None:
    """A debug callback, called once for a batch, not once for each member."""

    @custom_vmap
    def call(*values: Array) -> Array:
        jax.debug.callback(function, *values)
        return jnp.zeros(())

    @call.def_vmap
    def _(size: int, batched: Any, *values: Array) -> tuple[Array, bool]:
        spread = (
            value if is_batched else jnp.broadcast_to(value, (size, *value.shape))
            for value, is_batched in zip(values, batched, strict=True)
        )
        _call_back(function, *spread)
        return jnp.zeros(()), False

    call(*values)


def _frames_inside() -> int:
    """The number of frames from the caller to the outermost frame of this package."""
    package = __name__.partition(".")[0]
    frames = [info.frame for info in inspect.stack(context=0)[1:]]
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    return len(names) - names[::-1].index(package)
