"""The kernel's evolution as an animation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .._internal.validation import require_bool, require_concrete, require_integer
from ._style import _RESOLUTION, style, symmetric_scale, time_symbol

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation

_PANEL, _HEIGHT = 2.6, 2.9  # inches


def animate_kernel(
    paths: Any, *, change: bool = False, interval: int = 150
) -> "FuncAnimation":
    """An animation: the kernel of the training points over time.

    **Arguments:**

    - `paths`: an [`nth.KernelPath`][], or a dict of several at equal times, such as
        `{"trained network": ..., "level 4": ...}`, which are shown beside each other on
        one scale.
    - `change`: whether to show the difference from the kernel at t = 0.
    - `interval`: milliseconds between two of the times.

    **Returns:** a `matplotlib.animation.FuncAnimation` with a frame for each time. Keep
    it, and write it to a file with `animation.save("kernel.gif")`, or show it in a
    notebook with `animation.to_jshtml()`.

    Needs matplotlib: `pip install 'neural-tangent-hierarchy[examples]'`.

    **Raises:** `ValueError` for paths at different times or of different shapes, or
    under `jax.jit`.

    ```python
    import jax
    import nth

    x = jax.random.normal(jax.random.key(0), (4, 2))
    problem = nth.Problem(x, jax.numpy.sign(x[:, 0]))
    network = nth.MLP(2, width=16, depth=1, key=jax.random.key(1))
    path = nth.kernel_along(nth.GradientFlow(network, problem), [0.0, 1.0, 2.0])
    animation = nth.plot.animate_kernel(path, change=True)
    animation.save("kernel.gif", writer="pillow")
    ```
    """
    require_concrete("paths", (paths, jnp.zeros(())), "plot.animate_kernel")
    change = require_bool("change", change)
    interval = require_integer("interval", interval, 1)
    every = paths if isinstance(paths, Mapping) else {"": paths}
    if not every or not all(hasattr(path, "on_train") for path in every.values()):
        raise ValueError(
            "paths must be an nth.KernelPath, such as that of nth.kernel_along, or a "
            f"dict of at least one; got {paths!r}."
        )
    ts = np.asarray(next(iter(every.values())).ts)
    kernels = _kernels(every, ts, change)
    label = "change of $K^{(2)}$" if change else "$K^{(2)}$"
    return _animation(list(every), ts, kernels, label, interval)


def _kernels(every: Mapping[str, Any], ts: np.ndarray, change: bool) -> np.ndarray:
    """The matrices (path, time, s, s)."""
    kernels = []
    for name, path in every.items():
        start, along = map(np.asarray, path.on_train())
        same = np.array_equal(path.ts, ts)
        if not same or (kernels and along.shape != kernels[0].shape):
            raise ValueError(
                f"paths[{name!r}] has other times than the first, or another shape, "
                f"{along.shape}: evaluate all at the same times, for one problem."
            )
        kernels.append(along - start if change else along)
    return np.stack(kernels)


def _animation(
    names: list[str], ts: np.ndarray, kernels: np.ndarray, label: str, interval: int
) -> "FuncAnimation":
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

    scale, unit = symmetric_scale(kernels), time_symbol(ts)
    with style():
        size = (_PANEL * len(names) + 1.0, _HEIGHT)
        figure = Figure(size, _RESOLUTION, layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        images = []
        for axis, name, along in zip(axes, names, kernels, strict=True):
            images.append(axis.imshow(along[0], **scale))
            axis.set(title=name, xticks=[], yticks=[], xlabel="training slot")
        axes[0].set_ylabel("training slot")
        figure.colorbar(images[0], ax=list(axes), label=label, shrink=0.9)
        title = figure.suptitle(f"{unit} = {ts[0]:.4g}")

    def update(frame: int) -> list[Any]:
        for image, along in zip(images, kernels, strict=True):
            image.set_data(along[frame])
        title.set_text(f"{unit} = {ts[frame]:.4g}")
        return [*images, title]

    return FuncAnimation(figure, update, frames=len(ts), interval=interval)
