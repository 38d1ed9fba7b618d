"""A sweep over widths with its power law."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ._style import LEVELS, panels, style

if TYPE_CHECKING:
    from ..scaling import Exponent, Sweep


def plot_sweep(sweep: "Sweep", laws: Sequence["Exponent | None"], axes: Any) -> Figure:
    """Medians over initializations, the quartiles as a band, and fitted power laws."""
    widths = np.asarray(sweep.widths, float)
    order = np.argsort(widths)
    leaves = jax.tree_util.tree_leaves_with_path(sweep.values)
    with style():
        figure, (axis,) = panels(axes, 1)
        for i, (path, values) in enumerate(leaves):
            color = LEVELS[i % len(LEVELS)]
            values = np.abs(np.asarray(values, float))[order]
            middle, low, high = np.quantile(values, (0.5, 0.25, 0.75), axis=1)
            label = jax.tree_util.keystr(path, simple=True, separator=" ")
            if (law := laws[i]) is not None:
                line = law.prefactor * widths[order] ** law.slope
                axis.plot(widths[order], line, color=color, lw=1, ls="--")
                exponent = f"exponent {law}".replace("-", "−")
                label = f"{label}: {exponent}".removeprefix(": ")
            axis.plot(widths[order], middle, "o", color=color, ms=4, label=label)
            axis.fill_between(widths[order], low, high, color=color, alpha=0.2, lw=0)
        axis.set(xscale="log", yscale="log", xlabel="width")
        axis.set_xticks(widths[order], [f"{width:g}" for width in widths[order]])
        axis.xaxis.set_minor_locator(NullLocator())
        if any(axis.get_legend_handles_labels()[1]):
            axis.legend(fontsize="small")
    return figure
