"""Trained networks of finite width beside their law, computed without sampling.

    python examples/theory/finite_width.py              # about ten minutes on 2 cores
    python examples/theory/finite_width.py --small      # seconds: what the checks run

Trains networks by gradient flow, and compares mean and variance of their outputs with
the law at infinite width and the law to O(1/width). Writes finite_width.png, and the
figures to finite_width.json.
"""

import json
import time
from functools import partial
from typing import Any

import click
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GRAY = "#8C8C8C"
X = jnp.concatenate([jnp.eye(3), jnp.array([[0.6, 0.0, 0.8], [0.6, -0.8, 0.0]])])
Y = jnp.array([1.0, -1.0, 0.5])
PROBLEM = nth.Problem(X[:3], Y, X[3:])
OPTIONS: Any = {"activation": "tanh", "parameterization": "ntk"}
OPTIONS |= {"sigma_w": 1.5, "sigma_a": 1.2}
TIMES = np.array([1.0, 6.0, np.inf])
# Steps of the fourth-order Runge-Kutta method, and how often to take them. The last
# ends at t = 56, where a mode at the limit of the NTK has decayed by 5e-9 or more.
SEGMENTS = [(0.125, 8), (0.25, 20), (0.5, 100)]


def trained(depth: int, width: int, samples: int) -> np.ndarray:
    """Outputs of gradient flow at `TIMES` on all points, of shape (samples, 3, 5)."""

    x, y = X.astype(jnp.float32), Y.astype(jnp.float32)

    def speed(network: nth.MLP) -> nth.MLP:
        def loss(network: nth.MLP) -> jax.Array:
            return jnp.mean((jax.vmap(network)(x[:3]) - y) ** 2) / 2

        gradient = eqx.filter_grad(loss)(network)
        return jax.tree.map(jnp.negative, gradient)

    def step(_: jax.Array, network: nth.MLP, h: float) -> nth.MLP:
        def moved(slope: nth.MLP, part: float) -> nth.MLP:
            return jax.tree.map(lambda w, s: w + h * part * s, network, slope)

        k1 = speed(network)
        k2 = speed(moved(k1, 0.5))
        k3 = speed(moved(k2, 0.5))
        k4 = speed(moved(k3, 1.0))
        mean = jax.tree.map(
            lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4
        )
        return moved(mean, 1.0)

    def outputs(key: jax.Array) -> jax.Array:
        network = nth.MLP(3, width, depth, dtype=jnp.float32, key=key, **OPTIONS)
        rows = []
        for h, count in SEGMENTS:
            network = jax.lax.fori_loop(0, count, partial(step, h=h), network)
            rows.append(jax.vmap(network)(x))
        return jnp.stack(rows)

    keys = jax.random.split(jax.random.key(1000 * depth + width), samples)
    # As many networks at a time as fit in a processor's cache.
    batch = max(1, 2**18 // width**2)
    run = jax.jit(lambda keys: jax.lax.map(outputs, keys, batch_size=batch))
    return np.asarray(run(keys), float)


def row_of(depth: int, width: int, samples: int) -> dict[str, Any]:
    """Means and variances of sampled networks, their errors, and both laws."""
    start = time.perf_counter()
    draws = trained(depth, width, samples)
    seconds = time.perf_counter() - start
    options = {"depth": depth, **OPTIONS}
    start = time.perf_counter()
    found = nth.infinite.corrections(X, width=width, **options)
    law = nth.infinite.ensemble(found, PROBLEM, TIMES)
    resummed = nth.infinite.ensemble(found, PROBLEM, TIMES, resummed=True)
    jax.block_until_ready((law.covariance, resummed.covariance))
    law_seconds = time.perf_counter() - start
    wide = nth.infinite.ensemble(nth.infinite.kernels(X, **options), PROBLEM, TIMES)
    laws = {"law": law, "resummed": resummed, "infinite_width": wide}
    mean, variance = draws.mean(axis=0), draws.var(axis=0, ddof=1)
    squares = (draws - mean) ** 2
    row: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "samples": samples,
        "seconds": {"networks": seconds, "law": law_seconds},
    }
    spreads = {"mean": variance**0.5, "variance": squares.std(axis=0)}
    for name, value in {"mean": mean, "variance": variance}.items():
        # On training points the variance at t = ∞ is zero, up to float32.
        error = np.maximum(spreads[name] / samples**0.5, 1e-6)
        row[name] = {"networks": value.tolist(), "standard_error": error.tolist()}
        for kind, ensemble in laws.items():
            part = np.asarray(getattr(ensemble, name))
            row[name][kind] = part.tolist()
            row[name][f"score_{kind}"] = ((part - value) / error).tolist()
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        for name in ("mean", "variance"):
            line = [row["depth"], row["width"], row["samples"], name]
            for kind in ("resummed", "law", "infinite_width"):
                scores = np.array(row[name][f"score_{kind}"])
                line += [np.sqrt(np.mean(scores**2)), np.max(np.abs(scores))]
            lines.append(line)
    headers = ["depth", "width", "networks", "of outputs", "resummed: rms", "max"]
    headers += ["expanded: rms", "max", "infinite width: rms", "max"]
    return tabulate(lines, headers, floatfmt=".2f")


def draw_shift(axis: Axes, part: dict[str, np.ndarray]) -> None:
    """The shift from infinite width over time, of networks and of both laws."""
    networks, law, resummed = (
        part[kind] - part["infinite_width"] for kind in ("networks", "law", "resummed")
    )
    points = {0: "training point 1", 3: "test point 1", 4: "test point 2"}
    for offset, point in enumerate(points):
        place = np.arange(3) + 0.2 * (offset - 1)
        axis.errorbar(
            place,
            networks[:, point],
            3 * part["standard_error"][:, point],
            fmt="o",
            ms=3,
            capsize=2,
            color=(PURPLE, BLUE, ORANGE)[offset],
            label=f"networks, {points[point]}",
        )
        axis.plot(place, law[:, point], "_", ms=9, mew=2, color=GRAY)
        axis.plot(place, resummed[:, point], "_", ms=9, mew=2, color=GREEN)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(3), ["1", "6", "∞"])


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Change of mean and variance from infinite width."""
    drawn = Figure(figsize=(7, 5.4), layout="constrained", dpi=150)
    axes = drawn.subplots(2, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        for axis, name in zip(axes[:, column], ("mean", "variance"), strict=True):
            draw_shift(axis, {key: np.array(value) for key, value in row[name].items()})
        hidden = "hidden layer" if row["depth"] == 1 else "hidden layers"
        title = f"{row['depth']} {hidden}, width {row['width']}"
        axes[0, column].set_title(title, fontsize=9)
        axes[1, column].set_xlabel("time $t$")
    axes[0, 0].set_ylabel("mean − limit of the mean")
    axes[1, 0].set_ylabel("variance − limit of the variance")
    for color, label in ((GREEN, "law to O(1/width), resummed"), (GRAY, "expanded")):
        axes[0, 0].plot([], [], "_", ms=9, mew=2, color=color, label=label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawn


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
@click.option("--samples", default=20_000, help="Networks for each depth.")
@click.option("--width", default=64, help="Neurons in each hidden layer.")
def main(small: bool, samples: int, width: int) -> None:
    depths = (1,) if small else (1, 2, 3)
    rows = [row_of(depth, width, 100 if small else samples) for depth in depths]
    print(table(rows))
    with nth.plot.style():
        figure(rows).savefig("finite_width.png")
    with open("finite_width.json", "w") as file:
        json.dump(
            {"device": jax.devices()[0].device_kind, "rows": rows}, file, indent=1
        )


if __name__ == "__main__":
    main()
