"""The figure of a comparison."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ._style import NETWORK, OTHERS, level_color, log_times, panels, style

if TYPE_CHECKING:
    from .._compare.comparison import Comparison, Points

_NAMES = {"train": "training", "test": "test"}
_IN_A_ROW = 4  # entries of the legend, as wide as two panels


def plot_comparison(comparison: "Comparison", axes: Any) -> Figure:
    """Panels of loss, error on training and test points, and accuracy for labels."""
    kinds: list["Points"] = ["train"]
    if comparison.problem.n_test:
        kinds.append("test")
    scored: list["Points"] = [
        k for k in kinds if comparison.accuracy("truth", k) is not None
    ]
    with style():
        figure, every = panels(axes, 1 + len(kinds) + bool(scored))
        _plot_loss(every[0], comparison)
        for axis, kind in zip(every[1:], kinds, strict=False):
            _plot_error(axis, comparison, kind)
        if scored:
            _plot_accuracy(every[-1], comparison, scored[-1])
        for axis in every:
            _mark_windows(axis, comparison)
            log_times(axis, comparison.ts)
        handles, labels = every[0].get_legend_handles_labels()
        if axes is None:
            columns = min(len(labels), _IN_A_ROW)
            place = {"loc": "outside lower center", "ncols": columns}
            figure.legend(handles, labels, **place)
        else:  # the figure is the user's
            every[0].legend(fontsize="small")
    return figure


def _levels(comparison: "Comparison") -> list[tuple[int | str, Any, str]]:
    """Levels, then other models, each with its color."""
    levels = [(p, s, level_color(p)) for p, s in comparison.solutions.items()]
    models = [
        (name, prediction, OTHERS[i % len(OTHERS)])
        for i, (name, prediction) in enumerate(comparison.models.items())
    ]
    return [*levels, *models]


def _plot_loss(axis: Any, comparison: "Comparison") -> None:
    ts = np.asarray(comparison.ts)
    axis.plot(ts, comparison.truth.loss, label="trained network", **NETWORK)
    for p, solution, color in _levels(comparison):
        label = p if isinstance(p, str) else f"$p = {p}$"
        axis.plot(ts, solution.loss, color=color, lw=1.2, label=label)
    axis.set(title="training loss", ylabel="loss")
    truth = np.asarray(comparison.truth.loss)
    if truth.max() > 10 * truth.min() > 0:
        axis.set_yscale("log")
        axis.set_ylim(truth.min() / 2, 2 * truth.max())
    else:
        axis.set_ylim(0, 1.2 * truth.max())


def _plot_error(axis: Any, comparison: "Comparison", kind: "Points") -> None:
    ts = np.asarray(comparison.ts)
    for p, _, color in _levels(comparison):
        error = np.asarray(comparison.error(p, kind))
        shown = (error > 0) & (ts > 0)
        axis.plot(ts[shown], error[shown], color=color, lw=1.5)
        estimate = np.asarray(comparison.error_estimate(p, kind))
        shown = (estimate > 0) & (ts > 0)
        axis.plot(ts[shown], estimate[shown], color=color, lw=1, ls="--", alpha=0.7)
    axis.set_yscale("log")
    axis.set(
        title=f"{_NAMES[kind]} points (dashed: estimate)", ylabel="RMS error of outputs"
    )


def _plot_accuracy(axis: Any, comparison: "Comparison", kind: "Points") -> None:
    ts = np.asarray(comparison.ts)
    truth = comparison.accuracy("truth", kind)
    axis.plot(ts, 100 * np.asarray(truth), **NETWORK)
    for p, _, color in _levels(comparison):
        share = comparison.accuracy(p, kind)
        axis.plot(ts, 100 * np.asarray(share), color=color, lw=1.2)
    axis.set(title=f"{_NAMES[kind]} points", ylabel="accuracy (%)")


def _mark_windows(axis: Any, comparison: "Comparison") -> None:
    for p, _, color in _levels(comparison):
        if np.isfinite(until := comparison.valid_until(p)):
            axis.axvline(until, color=color, lw=0.8, ls=":")
