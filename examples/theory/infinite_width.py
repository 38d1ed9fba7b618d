"""Infinite width beside finite networks: the NTK, and an ensemble that is trained.

    python examples/theory/infinite_width.py            # about a minute on 2 cores
    python examples/theory/infinite_width.py --small    # seconds: what the checks run

Prints a table and writes infinite_width.png and ensemble.png.
"""

from typing import Any

import click
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _law import axes, interval, over_widths, whole_decades
from matplotlib.figure import Figure
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

BLUE, ORANGE, GREEN = (nth.plot.level_color(p) for p in (2, 3, 4))
OPTIONS: Any = {"depth": 3, "activation": "erf", "sigma_w": 2.0}
PAIR = jnp.asarray([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])


def ntk_draws(width: int, samples: int) -> np.ndarray:
    """K⁽²⁾ at a pair of points, of many networks of one width."""

    def of_network(key: jax.Array) -> jax.Array:
        network = nth.MLP(3, width, key=key, **OPTIONS)
        rows = jax.vmap(eqx.filter_grad(lambda f, x: f(x)), (None, 0))(network, PAIR)
        leaves = jax.tree.leaves(rows)
        return jnp.sum(jnp.stack([jnp.vdot(leaf[0], leaf[1]) for leaf in leaves]))

    keys = jax.random.split(jax.random.key(width), samples)
    many = jax.jit(lambda k: jax.lax.map(of_network, k, batch_size=1000))
    return np.asarray(many(keys))


def scaling(widths: list[int], samples: int) -> None:
    limit = float(nth.infinite.kernels(PAIR, **OPTIONS).ntk[0, 1])
    draws = [ntk_draws(width, samples) for width in widths]
    gaps = np.array([d.mean() for d in draws]) / limit - 1
    doubts = np.array([d.std() for d in draws]) / samples**0.5 / limit
    spreads = np.array([d.std() for d in draws]) / limit
    headers = ("width", "mean NTK / limit - 1", "standard error", "spread")
    rows = list(zip(widths, gaps, doubts, spreads, strict=True))
    print(tabulate(rows, headers=headers, floatfmt=(".0f", ".4f", ".4f", ".3f")))
    draw_scaling(np.array(widths), [np.array(d) / limit for d in draws], gaps, doubts)


def draw_scaling(
    w: np.ndarray, draws: list[np.ndarray], gaps: np.ndarray, doubts: np.ndarray
) -> None:
    """The fluctuation of one network, and the mean, each with its 95 % interval."""
    figure, (left, right) = axes(2)
    figure.set_figheight(3.2)
    middle, bars = interval(np.stack(draws), np.std)
    points: Any = {"fmt": "o", "ms": 4, "capsize": 2}
    left.errorbar(w, middle, bars, color=BLUE, label="one network", **points)
    line = middle[-1] * (w[-1] / w) ** 0.5
    left.plot(w, line, color=BLUE, lw=0.8, ls="--", label="$w^{-1/2}$")
    left.set(title="standard deviation", ylabel="relative to the limit of the NTK")
    right.errorbar(w, gaps, 1.96 * doubts, color=ORANGE, label="mean", **points)
    line = gaps[0] * w[0] / w
    right.plot(w, line, color=ORANGE, lw=0.8, ls="--", label="$w^{-1}$")
    right.set(title="distance of the mean from the limit")
    for axis in (left, right):
        over_widths(axis, list(w), fontsize=8)
        whole_decades(axis)
    figure.savefig("infinite_width.png")


def ensemble(width: int, members: int) -> None:
    """One input in [−1, 1], with a second of 1 for an offset; 2 hidden layers."""
    options: Any = {"depth": 2, "activation": "erf", "sigma_w": 1.7}
    options["parameterization"] = "ntk"
    grid = np.linspace(-1.3, 1.3, 60)
    spots = np.array([-0.9, -0.4, 0.1, 0.3, 0.8])
    x, new = (np.stack([2 * v, np.ones_like(v)], axis=1) for v in (spots, grid))
    problem = nth.Problem(x, np.sin(4 * spots), new)
    ts = np.array([0.0, 10.0, np.inf])
    kernels = nth.infinite.kernels(problem.x, **options)
    law = nth.infinite.ensemble(kernels, problem, ts)

    @jax.jit
    def trained(key: jax.Array) -> jax.Array:
        network = nth.MLP(2, width, key=key, **options)
        kernels = nth.kernels(network, problem, order=2, progress=False)
        return nth.closed_form(kernels, problem, ts).test

    draws = [trained(jax.random.key(k)) for k in range(members)]
    with nth.plot.style():
        figure = Figure(figsize=(7.0, 2.6), layout="constrained", dpi=150)
        panels = figure.subplots(1, 3, sharey=True)
    for i, (axis, t) in enumerate(zip(panels, ("0", "10", r"\infty"), strict=True)):
        mean, spread = (np.asarray(part[i, 5:]) for part in (law.mean, law.deviation))
        for draw in draws:
            axis.plot(grid, draw[i], color=GREEN, lw=0.6, alpha=0.7)
        axis.fill_between(
            grid, mean - 2 * spread, mean + 2 * spread, color=BLUE, alpha=0.2, lw=0
        )
        axis.plot(grid, mean, color=BLUE, lw=1.5)
        axis.plot(spots, problem.y_train, "o", color="black", ms=4)
        axis.set_title(f"$t = {t}$", fontsize=9)
        axis.set_xlabel("input")
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("output")
    figure.savefig("ensemble.png")


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not a minute.")
def main(small: bool) -> None:
    scaling([4, 8] if small else [4, 8, 16, 32], 2000 if small else 40_000)
    ensemble(32 if small else 512, 2 if small else 12)


if __name__ == "__main__":
    main()
