"""Colors and fonts. Matplotlib is imported when the first figure is drawn."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal.clock import clock_of
from .._internal.validation import require_integer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe & Ito, suitable for print and color-blind readers. Levels 2 to 6
# come first; other models have one of the other colors.
LEVELS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
OTHERS = ("#56B4E9", "#8C564B", "#6A3D9A")
NETWORK: dict[str, Any] = {"color": "black", "lw": 2.5, "alpha": 0.5}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_RESOLUTION = 150  # dots per inch
# In inches. Text of 9 points is readable in a column of a page, about 7 inches wide.
_WIDTH, _ONE_PANEL, _ROW = 7.0, 4.6, 2.7
_EXAMPLE = "such as plt.subplots()[1]"


def level_color(order: int) -> str:
    """The color of level p = `order` in every figure of this library.

    **Arguments:** `order`, an integer of at least 2. From level 7 on colors repeat.

    **Returns:** a color that matplotlib understands, such as `"#0072B2"`.

    **Raises:** `ValueError` for another order.

    ```python
    import nth

    assert nth.plot.level_color(2) != nth.plot.level_color(3)
    ```
    """
    return LEVELS[(require_integer("order", order, 2) - 2) % len(LEVELS)]


def style() -> AbstractContextManager[None]:
    """The style of this library's figures, for figures of your own.

    **Returns:** a context manager, inside which matplotlib makes figures in this style:

    ```python
    import matplotlib.pyplot as plt
    import nth

    with nth.plot.style():
        figure, axes = plt.subplots()
    ```

    Needs matplotlib: `pip install 'neural-tangent-hierarchy[examples]'`.
    """
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def panels(axes: Any, count: int, columns: int = 2) -> tuple["Figure", list["Axes"]]:
    """`count` axes in rows, in a new figure, or those that the user gave."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if axes is None:
        columns = min(count, columns)
        rows = -(-count // columns)
        size = (_WIDTH if columns > 1 else _ONE_PANEL, _ROW * rows)
        figure = Figure(size, _RESOLUTION, layout="constrained")
        every = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for spare in every[count:]:
            spare.remove()
        return figure, every[:count]
    given = [axes] if isinstance(axes, Axes) else list(np.ravel(np.asarray(axes)))
    if len(given) != count or not all(isinstance(axis, Axes) for axis in given):
        kind = "one matplotlib Axes" if count == 1 else f"{count} matplotlib Axes"
        raise ValueError(
            f"axes must be {kind}, {_EXAMPLE.replace('()', f'(1, {count})')}, or None "
            f"for a new figure; got {len(given)} of type {type(given[0]).__name__}."
            if given
            else f"axes must be {kind}, or None for a new figure; got none."
        )
    figure = given[0].get_figure(root=True)
    assert figure is not None  # axes made by matplotlib have one
    return figure, given


def time_symbol(ts: Any) -> str:
    """`$t$`, or `step` for the steps of an optimizer."""
    return {"time": "$t$", "step": "step"}[clock_of(ts)]


def symmetric_scale(values: np.ndarray) -> dict[str, Any]:
    """Options of an image: a diverging scale, symmetric about zero, on which signs are
    visible, for the finite ones of `values`."""
    finite = np.abs(values[np.isfinite(values)])
    limit = (float(finite.max()) if finite.size else 0.0) or 1.0
    return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}


def log_times(axis: "Axes", ts: Any) -> None:
    """A logarithmic axis if the times are spaced so over a decade, and its label."""
    from matplotlib.ticker import NullFormatter

    ts = np.asarray(ts)
    if clock_of(ts) == "step":
        axis.set_xlabel("step")
        return
    axis.set_xlabel("time $t$")
    positive = ts[ts > 0]
    spread = len(positive) > 1 and positive[-1] > 10 * positive[0]
    # The median of equally spaced times is near the half of the last.
    if spread and np.median(positive) < positive[-1] / 3:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(positive[0], positive[-1])


def chosen(argument: str, indices: "Iterable[int]", count: int) -> list[int]:
    """`indices` as a list, checked to be at least one, each below `count`."""
    try:
        result = [require_integer(argument, index, 0) for index in indices]
    except TypeError:  # not a sequence
        result = []
    if not result or max(result) >= count:
        raise ValueError(
            f"{argument} must be at least one index from 0 to {count - 1}, such as "
            f"[0]; got {indices!r}."
        )
    return result
