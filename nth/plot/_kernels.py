"""Kernel matrices and spectra over time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ._style import chosen, log_times, panels, style, symmetric_scale, time_symbol

_MATRICES = 3


def plot_kernels(
    ts: np.ndarray,
    kernels: np.ndarray,
    label: str,
    indices: Sequence[int] | None,
    axes: Any,
) -> Figure:
    """The matrices (T, s, s) at some of the times, with one color scale."""
    last = len(ts) - 1
    spread = np.unique(np.linspace(0, last, min(_MATRICES, len(ts))).round())
    default = spread.astype(int).tolist()
    rows = chosen("indices", default if indices is None else indices, len(ts))
    shown = kernels[np.asarray(rows)]
    with style():
        figure, every = panels(axes, len(rows), columns=3)
        scale = symmetric_scale(shown)
        images = [
            axis.imshow(kernel, **scale)
            for axis, kernel in zip(every, shown, strict=True)
        ]
        for axis, i in zip(every, rows, strict=True):
            axis.set_title(f"{time_symbol(ts)} = {ts[i]:.4g}")
            axis.set_xlabel("training slot")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(MaxNLocator(5, integer=True))
        every[0].set_ylabel("training slot")
        if axes is None:  # images keep their aspect, which leaves gaps
            figure.set_layout_engine("compressed")
        figure.colorbar(images[0], ax=every, label=label, shrink=0.9)
    return figure


def plot_spectrum(ts: np.ndarray, eigenvalues: np.ndarray, axes: Any) -> Figure:
    """Eigenvalues (T, k) over time, the largest darkest."""
    from matplotlib import colormaps

    colors = colormaps["viridis"](np.linspace(0, 0.75, eigenvalues.shape[1]))
    with style():
        figure, (axis,) = panels(axes, 1)
        for i, color in enumerate(colors):
            label = rf"$\lambda_{{{i + 1}}}$"
            axis.plot(ts, eigenvalues[:, i], color=color, lw=1.2, label=label)
        if np.nanmin(eigenvalues) > 0:
            axis.set_yscale("log")
        axis.set_ylabel("eigenvalue of $K^{(2)}$")
        log_times(axis, ts)
        axis.legend(fontsize="small", ncols=2)
    return figure
