"""The number of expansions that a training run needs: restarts by width and level.

    python -m benchmarks restarts    # about 10 minutes

24 + 24 digits, odd against even, two hidden layers, tanh, to t = 150,
`until_error` 1e-2 and 1e-3: the number of expansions, the largest error against the
trained network, and the last estimate.
"""

from typing import Any

import jax
import numpy as np
from sklearn.datasets import load_digits

import nth

from .record import Row

LIMITS, ORDERS, WIDTHS = (1e-2, 1e-3), (2, 3, 4), (16, 32, 64, 128, 256)
TS = np.geomspace(0.15, 150, 16)


def digits(n):
    images, numbers = map(np.asarray, load_digits(return_X_y=True))
    chosen = np.random.default_rng(0).permutation(len(images))[: 2 * n]
    x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
    return nth.Problem(x[:n], np.where(numbers[chosen[:n]] % 2, 1.0, -1.0), x[n:])


def rows_at(width, problem, orders):
    network = nth.MLP(64, width, 2, key=jax.random.key(0))
    truth = nth.gradient_flow(network, problem, TS, progress=False)
    for p in orders:
        for limit in LIMITS:
            options: Any = {"until_error": limit, "restart": True, "progress": False}
            solution = nth.solve(network, problem, TS, order=p, **options)
            assert solution.restarts is not None
            difference = np.concatenate(
                [solution.train - truth.train, solution.test - truth.test], axis=1
            )
            yield {
                "case": f"width {width}, p = {p}, tolerance {limit:g}",
                "expansions": len(solution.restarts) + 1,
                "largest error": float(np.sqrt(np.mean(difference**2, axis=1)).max()),
                "last estimate": float(solution.error_estimate[-1]),
            }


def measure(small: bool) -> list[Row]:
    """Draws `restarts.png`, too."""
    problem = digits(4 if small else 24)
    if small:
        return list(rows_at(64, problem, (4,)))
    rows = [row for width in WIDTHS for row in rows_at(width, problem, ORDERS)]
    with nth.plot.style():
        plot({row["case"]: row["expansions"] for row in rows})
    return rows


def plot(counts):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    colors = {p: nth.plot.level_color(p) for p in ORDERS}
    for axis, limit in zip(axes, LIMITS, strict=True):
        for p in ORDERS:
            numbers = [
                counts[f"width {width}, p = {p}, tolerance {limit:g}"]
                for width in WIDTHS
            ]
            axis.plot(WIDTHS, numbers, "o-", color=colors[p], label=f"$p = {p}$", ms=4)
        axis.set(xscale="log", yscale="log", xlabel="width")
        axis.set_xticks(WIDTHS, map(str, WIDTHS))
        axis.minorticks_off()
        axis.set_title(f"estimated error below {limit:g}")
    axes[0].set_ylabel("expansions to $t = 150$")
    axes[1].legend(frameon=False)
    figure.savefig("restarts.png", dpi=150)
