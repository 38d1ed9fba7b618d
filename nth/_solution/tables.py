"""Predictions as tables: one row for each time, point and output."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .._internal.clock import clock_of
from .._internal.frames import require_pandas
from .._internal.validation import require_concrete
from .prediction import AbstractPrediction

if TYPE_CHECKING:
    import pandas


def prediction_table(prediction: AbstractPrediction) -> "pandas.DataFrame":
    """Implementation of [`nth.AbstractPrediction.to_dataframe`][]."""
    name = f"{type(prediction).__name__}.to_dataframe"
    require_concrete("prediction", (prediction, jnp.zeros(())), name)
    pandas = require_pandas(name)
    ts = np.asarray(prediction.ts)
    if ts.ndim != 1:
        raise ValueError(
            f"{name} takes one prediction; got a batch, with times of shape "
            f"{ts.shape}: select one with jax.tree.map(lambda leaf: leaf[i], batch)."
        )
    outputs = np.concatenate([prediction.train, prediction.test], axis=1)
    errors = getattr(prediction, "output_errors", None)
    counts = prediction.train.shape[1], prediction.test.shape[1]
    axes = [np.arange(size) for size in outputs.shape]
    time, slot, *out = np.meshgrid(*axes, indexing="ij")
    columns: dict[str, Any] = {clock_of(ts): ts[time]}
    columns["points"] = np.repeat(["train", "test"], counts)[slot]
    columns["point"] = np.concatenate([np.arange(count) for count in counts])[slot]
    columns |= {output_name(k, len(out)): index for k, index in enumerate(out)}
    columns["value"] = outputs
    if errors is not None:
        columns["error_estimate"] = np.abs(np.asarray(errors))
    return pandas.DataFrame({name: c.ravel() for name, c in columns.items()})


def output_name(k: int, count: int) -> str:
    """The name of axis `k` of the outputs."""
    return "output" if count == 1 else f"output_{k}"
