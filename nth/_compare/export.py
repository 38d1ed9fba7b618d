"""A comparison as a table and as a labeled data set."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal.frames import require_pandas
from .._solution.prediction import AbstractPrediction
from .table import name_of

if TYPE_CHECKING:
    import pandas
    import xarray

    from .comparison import Comparison, Points


def models_of(comparison: "Comparison") -> dict[str, AbstractPrediction]:
    """The trained network, levels and other models, by name."""
    levels = {name_of(p, "="): model for p, model in comparison.every.items()}
    return {"truth": comparison.truth, **levels}


def _kinds(comparison: "Comparison") -> list["Points"]:
    return ["train", "test"] if comparison.problem.n_test else ["train"]


def _accuracies(comparison: "Comparison", points: "Points") -> np.ndarray | None:
    """The accuracies (model, time); `None` if the targets are not labels."""
    every = [comparison.accuracy(p, points) for p in ("truth", *comparison.every)]
    known = [np.asarray(score) for score in every if score is not None]
    return np.stack(known) if len(known) == len(every) else None


def _estimates(comparison: "Comparison") -> np.ndarray:
    """The estimated errors (model, time), NaN for the trained network."""
    rows = [np.asarray(comparison.error_estimate(p)) for p in comparison.every]
    unknown = np.full(comparison.ts.shape, np.nan, comparison.truth.loss.dtype)
    return np.stack([unknown, *rows])


def comparison_table(comparison: "Comparison") -> "pandas.DataFrame":
    """Implementation of [`nth.Comparison.to_dataframe`][]."""
    pandas = require_pandas("Comparison.to_dataframe")
    models = models_of(comparison)
    ts = np.asarray(comparison.ts)
    columns: dict[str, Any] = {
        "model": np.repeat(list(models), len(ts)),
        comparison.clock: np.tile(ts, len(models)),
        "loss": _stack(models, "loss"),
    }
    for points in _kinds(comparison):
        errors = [np.asarray(comparison.error(p, points)) for p in comparison.every]
        columns[f"{points}_error"] = np.stack([np.zeros(len(ts)), *errors])
    columns["error_estimate"] = _estimates(comparison)
    for points in _kinds(comparison):
        if (scores := _accuracies(comparison, points)) is not None:
            columns[f"{points}_accuracy"] = scores
    return pandas.DataFrame({name: np.ravel(c) for name, c in columns.items()})


def comparison_data_set(comparison: "Comparison") -> "xarray.Dataset":
    """Implementation of [`nth.Comparison.to_xarray`][]."""
    import xarray

    models, truth = models_of(comparison), comparison.truth
    out = [f"output_{k}" for k in range(truth.train.ndim - 2)]
    ends = [comparison.valid_until(p) for p in comparison.every]
    data: dict[str, Any] = {
        "train": (("model", "time", "train_point", *out), _stack(models, "train")),
        "test": (("model", "time", "test_point", *out), _stack(models, "test")),
        "loss": (("model", "time"), _stack(models, "loss")),
        "error_estimate": (("model", "time"), _estimates(comparison)),
        "valid_until": ("model", np.stack([truth.valid_until, *ends])),
    }
    for points in _kinds(comparison):
        if (scores := _accuracies(comparison, points)) is not None:
            data[f"{points}_accuracy"] = (("model", "time"), scores)
    coordinates = {
        "model": list(models),
        "time": np.asarray(comparison.ts),
        "train_point": np.arange(truth.train.shape[1]),
        "test_point": np.arange(truth.test.shape[1]),
        **{name: np.arange(truth.train.shape[2 + k]) for k, name in enumerate(out)},
        **_points(comparison),
    }
    return xarray.Dataset(data, coordinates)


def _points(comparison: "Comparison") -> dict[str, Any]:
    """Inputs and targets as coordinates of the points."""
    problem, coordinates = comparison.problem, {}
    targets = {"train": problem.y_train, "test": comparison.y_test}
    for points, inputs in (("train", problem.x_train), ("test", problem.x_test)):
        arrays = {"x": inputs if hasattr(inputs, "shape") else None}
        arrays["y"] = targets[points]
        for kind, array in arrays.items():
            if array is not None:
                axis = {"x": "input", "y": "target"}[kind]
                axes = [f"{axis}_{k}" for k in range(array.ndim - 1)]
                coordinates[f"{kind}_{points}"] = ((f"{points}_point", *axes), array)
    return {k: (axes, np.asarray(array)) for k, (axes, array) in coordinates.items()}


def _stack(models: dict[str, AbstractPrediction], name: str) -> np.ndarray:
    return np.stack([np.asarray(getattr(m, name)) for m in models.values()])
