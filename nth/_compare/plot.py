"""The figure of a comparison; only this module imports matplotlib, when it is used."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .comparison import Comparison, Points

# The palette of Okabe & Ito, suitable for print and color-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def plot_comparison(comparison: "Comparison") -> Figure:
    """Panels of loss, error on training and test points, and accuracy for labels."""
    import matplotlib

    kinds: list["Points"] = ["train"]
    if comparison.problem.n_test:
        kinds.append("test")
    with matplotlib.rc_context(_STYLE):
        scored: list["Points"] = [
            k for k in kinds if comparison.accuracy("truth", k) is not None
        ]
        panels = 1 + len(kinds) + bool(scored)
        figure = Figure(figsize=(2.9 * panels, 2.7), layout="constrained", dpi=150)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        _plot_loss(axes[0], comparison)
        for axis, kind in zip(axes[1:], kinds, strict=False):
            _plot_error(axis, comparison, kind)
        if scored:
            _plot_accuracy(axes[-1], comparison, scored[-1])
        for axis in axes:
            _mark_windows(axis, comparison)
            axis.set_xlabel("time $t$" if comparison.clock == "time" else "step")
            if comparison.clock == "time":
                _log_time(axis, comparison)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=len(labels),
            frameon=False,
        )
    return figure


def _levels(comparison: "Comparison") -> list[tuple[int | str, Any, str]]:
    return [
        (p, solution, _COLORS[i % len(_COLORS)])
        for i, (p, solution) in enumerate(comparison.every.items())
    ]


def _plot_loss(axis: Any, comparison: "Comparison") -> None:
    ts = np.asarray(comparison.ts)
    axis.plot(
        ts,
        comparison.truth.loss,
        color="black",
        lw=2.5,
        alpha=0.5,
        label="trained network",
    )
    for p, solution, color in _levels(comparison):
        label = p if isinstance(p, str) else f"$p = {p}$"
        axis.plot(ts, solution.loss, color=color, lw=1.2, label=label)
    axis.set_title("training loss")
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
    axis.set_title(f"RMS error (-- estimate), {kind}")


def _plot_accuracy(axis: Any, comparison: "Comparison", kind: "Points") -> None:
    ts = np.asarray(comparison.ts)
    truth = comparison.accuracy("truth", kind)
    axis.plot(ts, 100 * np.asarray(truth), color="black", lw=2.5, alpha=0.5)
    for p, _, color in _levels(comparison):
        share = comparison.accuracy(p, kind)
        axis.plot(ts, 100 * np.asarray(share), color=color, lw=1.2)
    axis.set_title(f"accuracy (%), {kind} points")


def _mark_windows(axis: Any, comparison: "Comparison") -> None:
    for p, _, color in _levels(comparison):
        if np.isfinite(until := comparison.valid_until(p)):
            axis.axvline(until, color=color, lw=0.8, ls=":")


def _log_time(axis: Any, comparison: "Comparison") -> None:
    """Use a logarithmic axis if the times span more than a decade."""
    ts = np.asarray(comparison.ts)
    positive = ts[ts > 0]
    if len(positive) > 1 and positive[-1] > 10 * positive[0]:
        axis.set_xscale("log")
        axis.set_xlim(positive[0], positive[-1])
