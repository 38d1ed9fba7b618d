"""What scripts of laws in the width share: points, a table, a figure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from tabulate import tabulate

import nth

_RESAMPLES = 400  # for the interval of a statistic
COLORS = tuple(nth.plot.level_color(p) for p in range(2, 7))
Statistic = Callable[..., np.ndarray]
Row = tuple[str, nth.scaling.Exponent, str]


def points(n: int, d: int = 4) -> jax.Array:
    """Unit vectors, all within a right angle of each other."""
    x = jnp.ones(d) + jax.random.normal(jax.random.key(1), (n, d))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def axes(panels: int) -> tuple[Figure, list[Axes]]:
    """Panels in a row, with text that is readable in a column of a page."""
    width = 4.6 if panels == 1 else 7.0
    with nth.plot.style():
        figure = Figure(figsize=(width, 4.0), layout="constrained", dpi=150)
        return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def interval(values: np.ndarray, statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
    """The absolute statistic over initializations, and the bars of its 95 % interval by
    bootstrap, (2, W)."""
    draws = np.random.default_rng(0).integers(
        values.shape[1], size=(_RESAMPLES, values.shape[1])
    )
    middle = np.abs(statistic(values, axis=-1))
    again = np.abs(np.stack([statistic(values[:, d], axis=-1) for d in draws]))
    low, high = np.quantile(again, (0.025, 0.975), axis=0)
    return middle, np.maximum(0.0, np.stack([middle - low, high - middle]))


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
    values: np.ndarray,
    statistic: Statistic,
    law: nth.scaling.Exponent,
    label: str,
    color: str,
) -> None:
    """A statistic of values (width, initialization) as points with 95 % intervals over
    the width, or the time, and its law as a line."""
    line = np.asarray(at, float)
    axis.plot(line, law.prefactor * line**law.slope, color=color, lw=0.9, ls="--")
    middle, bars = interval(values, statistic)
    options: Any = {"ms": 4, "capsize": 2, "elinewidth": 1}
    label = f"{label}: exponent {law}".replace("-", "−")
    axis.errorbar(line, middle, bars, fmt="o", color=color, label=label, **options)
    below = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.17)}
    over_widths(axis, at, fontsize=8, **below)
    whole_decades(axis)


def whole_decades(axis: Axes) -> None:
    """Limits of the logarithmic axis of values, so that at least two have a label."""
    limits = axis.dataLim  # an interval may contain zero
    low, high = np.log10([limits.minposy, limits.ymax])
    axis.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    axis.yaxis.set_minor_formatter(NullFormatter())


def medians(
    axis: Axes, sweep: nth.scaling.Sweep, published: dict[str, str]
) -> list[Row]:
    """The law of each median over initializations, beside what was published."""
    rows = []
    for (name, words), color in zip(published.items(), COLORS, strict=False):
        values = sweep.values[name]
        law = nth.scaling.fit(sweep.widths, values, statistic=np.median)
        draw(axis, sweep.widths, values, np.median, law, name, color)
        rows.append((name, law, words))
    return rows


def report(title: str, rows: Iterable[Row]) -> None:
    table = [(name, str(law), f"{law.r2:.4f}", words) for name, law, words in rows]
    headers = (title, "exponent [95%]", "R²", "published")
    print(tabulate(table, headers=headers, disable_numparse=True))
