"""Decision regions of classifiers of two inputs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .._internal.validation import (
    require_callable,
    require_concrete,
    require_instance,
    require_integer,
)
from .._problem.problem import Problem
from ._style import LEVELS, panels, style, symmetric_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN = 0.15  # of the extent of the points, on each side


def decision_regions(
    predict: Callable[[Any], Any],
    problem: Problem,
    *,
    resolution: int = 100,
    axes: Any = None,
) -> "Figure":
    """A figure: what a predictor decides in the plane of its two inputs.

    A scalar output is shown by its value, on a scale that is symmetric about 0, with
    the line where it changes its sign; of several outputs each color is the region
    where one is the largest. Training points have the color of their label.

    **Arguments:**

    - `predict`: a function of points, of shape `(k, 2)`, that returns their outputs, of
        shape `(k,)` or `(k, C)`: `jax.vmap(network)`, or for a level
        `lambda x: hierarchy.predict(solution.state, x)`.
    - `problem`: an [`nth.Problem`][] whose inputs have two numbers.
    - `resolution`: the number of points along each side of the grid.
    - `axes`: one matplotlib axes; by default a new figure is made.

    Needs matplotlib: `pip install 'neural-tangent-hierarchy[examples]'`.

    **Raises:** `ValueError` for inputs or outputs of other shapes, or under `jax.jit`.

    ```python
    import jax
    import nth

    x = jax.random.normal(jax.random.key(0), (8, 2))
    problem = nth.Problem(x, jax.numpy.sign(x[:, 0] * x[:, 1]))
    network = nth.MLP(2, width=32, depth=1, key=jax.random.key(1))
    nth.plot.decision_regions(jax.vmap(network), problem).savefig("regions.png")
    ```
    """
    require_callable("predict", predict, "such as jax.vmap(network)")
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    require_concrete("problem", (problem, jnp.zeros(())), "plot.decision_regions")
    resolution = require_integer("resolution", resolution, 2)
    x = problem.x_train
    if not isinstance(x, jax.Array) or x.shape[1:] != (2,):
        shapes = jax.tree.map(jnp.shape, x)
        raise ValueError(
            f"problem must have inputs of two numbers, x_train of shape (n, 2); got "
            f"{shapes}."
        )
    sides, outputs = _on_grid(predict, np.asarray(x), resolution)
    with style():
        figure, (axis,) = panels(axes, 1)
        if outputs.ndim == 2:
            labels = np.sign(np.asarray(problem.y_train, float).reshape(len(x), -1))
            colors = _signs(axis, sides, outputs, labels[:, 0])
        else:
            colors = _classes(axis, sides, outputs, np.asarray(problem.y_train))
        axis.scatter(*np.asarray(x).T, c=colors, s=28, edgecolors="white", zorder=3)
        axis.set(xlabel="first input", ylabel="second input", aspect="equal")
    return figure


def _on_grid(
    predict: Callable[[Any], Any], x: np.ndarray, resolution: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The sides of the grid, and the outputs on it, (resolution, resolution, *out)."""
    low, high = x.min(axis=0), x.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    sides = [
        np.linspace(
            low[k] - _MARGIN * extent[k], high[k] + _MARGIN * extent[k], resolution
        )
        for k in range(2)
    ]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2).astype(x.dtype)
    outputs = np.asarray(predict(grid))
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        outputs = outputs[:, 0]
    if outputs.ndim not in (1, 2) or len(outputs) != len(grid):
        raise ValueError(
            f"predict must return outputs of shape (k,) or (k, C) for k = {len(grid)} "
            f"points; got {outputs.shape}. For a function of one point give "
            "jax.vmap(predict)."
        )
    return sides, outputs.reshape(resolution, resolution, *outputs.shape[1:])


def _signs(
    axis: Any, sides: list[np.ndarray], outputs: np.ndarray, labels: np.ndarray
) -> list[str]:
    """The output as a color, and its zero as a line; the colors of the points."""
    scale = symmetric_scale(outputs)
    image = axis.pcolormesh(*sides, outputs, rasterized=True, **scale)
    axis.get_figure().colorbar(image, ax=axis, label="output", shrink=0.8)
    if outputs.min() < 0 < outputs.max():
        axis.contour(*sides, outputs, levels=[0.0], colors="black", linewidths=1.2)
    return ["#b2182b" if label > 0 else "#2166ac" for label in labels]


def _classes(
    axis: Any, sides: list[np.ndarray], outputs: np.ndarray, targets: np.ndarray
) -> list[str]:
    """The region of each class in its color; the colors of the points."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    count = outputs.shape[-1]
    colors = [LEVELS[k % len(LEVELS)] for k in range(count)]
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    axis.pcolormesh(
        *sides,
        outputs.argmax(axis=-1),
        cmap=ListedColormap(colors),
        norm=norm,
        alpha=0.35,
        rasterized=True,
    )
    labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
    return [colors[int(label)] for label in labels]
