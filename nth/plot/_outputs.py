"""Outputs over time: of one solution with its estimated errors, or of an ensemble."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure

from ._style import LEVELS, chosen, log_times, panels, style

if TYPE_CHECKING:
    from .._solution.solution import Solution

_LINES = 6  # more are hard to tell apart
_PANELS = 3
# Quantiles of an ensemble: the band holds nine members of ten.
_BAND = (0.05, 0.95)


def plot_outputs(
    solution: "Solution",
    points: Literal["train", "test"],
    indices: Sequence[int] | None,
    axes: Any,
) -> Figure:
    """One panel for a scalar network, one for each point of a network with outputs."""
    ts, outputs, low, high, band = _bands(solution, points)
    count, entries = outputs.shape[1:]
    most = _LINES if entries == 1 else _PANELS
    default = range(min(count, most))
    rows = chosen("indices", default if indices is None else indices, count)
    # One list of lines for each panel: (index of the point, of the output, label).
    scalar = [[(i, 0, f"point {i}") for i in rows]]
    several = [[(i, k, f"output {k}") for k in range(entries)] for i in rows]
    lines = scalar if entries == 1 else several
    with style():
        figure, every = panels(axes, len(lines))
        for axis, panel in zip(every, lines, strict=True):
            for color, (i, k, label) in zip(_cycled(len(panel)), panel, strict=True):
                axis.plot(ts, outputs[:, i, k], color=color, lw=1.2, label=label)
                axis.fill_between(
                    ts, low[:, i, k], high[:, i, k], color=color, alpha=0.2, lw=0
                )
            single = f"{points} point {panel[0][0]}"
            axis.set_title(f"{points} points" if entries == 1 else single)
            log_times(axis, ts)
        every[0].set_ylabel("output")
        every[-1].legend(fontsize="small", title=band, title_fontsize="small")
    return figure


def _bands(
    solution: "Solution", points: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Times, outputs (T, points, entries), the limits of their band, and its name."""
    outputs = np.asarray(getattr(solution, points), float)
    if solution.ts.ndim == 1:
        count = solution.train.shape[1]
        flat = outputs.reshape(*outputs.shape[:2], -1)
        if solution.output_errors is None:
            return np.asarray(solution.ts), flat, flat, flat, "no error estimate"
        errors = np.asarray(solution.output_errors, float)
        errors = errors[:, :count] if points == "train" else errors[:, count:]
        errors = np.abs(errors.reshape(flat.shape))
        name = "± estimated error"
        return np.asarray(solution.ts), flat, flat - errors, flat + errors, name
    ts = np.asarray(solution.ts)[0]
    flat = outputs.reshape(*outputs.shape[:3], -1)
    # A member that diverged has NaN, which leaves no quantile.
    middle, low, high = np.quantile(flat, (0.5, *_BAND), axis=0)
    return ts, middle, low, high, f"median, 90 % of {len(flat)} members"


def _cycled(count: int) -> list[Any]:
    """So many colors: the palette, or a continuous scale where it has too few."""
    if count <= len(LEVELS):
        return list(LEVELS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.75, count)))
