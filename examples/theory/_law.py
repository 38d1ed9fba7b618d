"""What scripts of laws in the width share: points, a table, a figure."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from tabulate import tabulate

import nth

COLORS = tuple(nth.plot.level_color(p) for p in range(2, 7))
Row = tuple[str, nth.scaling.Exponent, str]


def points(n: int, d: int = 4) -> jax.Array:
    """Unit vectors, all within a right angle of each other."""
    x = jnp.ones(d) + jax.random.normal(jax.random.key(1), (n, d))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def axes(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(0.6 + 3.4 * panels, 3.8), layout="constrained", dpi=150)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def over_widths(axis: Axes, at: Sequence[float], **legend: Any) -> None:
    """Logarithmic axes, a tick at each width, or time, and a legend."""
    axis.set(xscale="log", yscale="log", xlabel="width")
    axis.set_xticks(at, [f"{place:g}" for place in at])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False, **legend)
    axis.spines[["top", "right"]].set_visible(False)


def draw(
    axis: Axes,
    at: Sequence[float],
    sizes: np.ndarray,
    law: nth.scaling.Exponent,
    label: str,
    color: str,
) -> None:
    """Sizes as points over the width, or the time, and their law as a line."""
    line = np.asarray(at, float)
    axis.plot(line, law.prefactor * line**law.slope, color=color, lw=0.9, ls="--")
    axis.plot(line, sizes, "o", color=color, ms=4, label=f"{label}: {law.slope:.2f}")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}
    over_widths(axis, at, fontsize=7, **below)
    low, high = np.log10(axis.dataLim.intervaly)
    axis.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))  # whole decades
    axis.yaxis.set_minor_formatter(NullFormatter())


def medians(
    axis: Axes, found: nth.scaling.Sweep, published: dict[str, str]
) -> list[Row]:
    """The law of each median over initializations, beside what was published."""
    rows = []
    for (name, words), color in zip(published.items(), COLORS, strict=False):
        values = found.values[name]
        law = nth.scaling.fit(found.widths, values, statistic=np.median)
        draw(axis, found.widths, np.median(values, axis=1), law, name, color)
        rows.append((name, law, words))
    return rows


def report(title: str, rows: Iterable[Row]) -> None:
    table = [(what, str(law), f"{law.r2:.4f}", words) for what, law, words in rows]
    headers = (title, "exponent [95%]", "R²", "published")
    print(tabulate(table, headers=headers, disable_numparse=True))
