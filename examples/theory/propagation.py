"""Signal propagation of tanh networks: phase diagram, correlation maps, depth scales.

    python examples/theory/propagation.py            # about a minute on 2 cores
    python examples/theory/propagation.py --small    # seconds: what the checks run

Writes propagation.png and prints the critical scales of each activation.
"""

from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SIGMA_B = 0.3


def phases(axis: Axes, size: int) -> None:
    """The depth scale of correlations, and the edge of chaos."""
    weights, biases = np.linspace(0.4, 3, size), np.linspace(0, 1.2, size)
    deep = nth.infinite.propagation(
        "tanh", sigma_w=weights[:, None], sigma_b=biases[None]
    )
    scale = np.clip(np.asarray(deep.depth_scale), 0, 100)
    mesh = axis.pcolormesh(
        weights,
        biases,
        scale.T,
        norm=LogNorm(0.5, 100),
        cmap="viridis",
        rasterized=True,
    )
    axis.figure.colorbar(mesh, ax=axis)
    line = nth.infinite.critical_line("tanh", variance=np.linspace(0, 5, 60))
    axis.plot(*line, color="white", lw=2)
    axis.text(0.7, 0.9, "ordered", color="white")
    axis.text(2.3, 0.2, "chaotic", color="white")
    axis.set(xlabel="$\\sigma_w$", ylabel="$\\sigma_b$", ylim=(0, 1.2), xlim=(0.4, 3))
    axis.set_title("depth scale of correlations (layers), tanh", fontsize=9)


def correlations(sigma_w: float, depths: list[int]) -> np.ndarray:
    """The correlation of two points after each number of layers."""
    x = jnp.array([[1.0, 0.2], [0.3, 0.9]])
    options: Any = {"activation": "tanh", "parameterization": "ntk", "use_bias": True}
    rows = []
    for depth in depths:
        kernel = nth.infinite.kernels(
            x,
            depth=depth,
            sigma_w=sigma_w,
            sigma_a=sigma_w,
            sigma_b=SIGMA_B,
            **options,
        ).nngp
        size = jnp.sqrt(jnp.diagonal(kernel))
        rows.append(kernel[0, 1] / size[0] / size[1])
    return np.array(rows)


def convergence(axis: Axes, depths: list[int]) -> None:
    """The distance of correlations from their fixed point, and its predicted slope."""
    for sigma_w, color in ((1.1, BLUE), (1.8, ORANGE), (2.5, GREEN)):
        deep = nth.infinite.propagation("tanh", sigma_w=sigma_w, sigma_b=SIGMA_B)
        gap = np.abs(correlations(sigma_w, depths) - float(deep.correlation))
        scale = float(deep.depth_scale)
        label = f"$\\sigma_w$ = {sigma_w}: {scale:.1f} layers"
        axis.plot(depths, gap, "o", ms=4, color=color, label=label)
        line = np.exp(-(np.array(depths) - depths[-1]) / scale) * gap[-1]
        axis.plot(depths, line, "--", lw=0.9, color=color)
    axis.set(yscale="log", xlabel="hidden layers")
    axis.set_title("|correlation − fixed point|, $\\sigma_b$ = 0.3", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def critical() -> str:
    """The edge of chaos of each activation: σ_w, σ_b at some fixed points q*."""
    rows = []
    for name in ("tanh", "erf", "sin", "relu", "gelu", "softplus", "sigmoid"):
        q = np.array([0.0, 0.5, 1.0, 2.0])
        weights, biases = nth.infinite.critical_line(name, variance=q)
        pairs = zip(np.asarray(weights), np.asarray(biases), strict=True)
        cells = [f"{w:.4f}, {b:.4f}" if b == b else "none" for w, b in pairs]
        rows.append([name, *cells])
    return tabulate(rows, ["activation", *(f"q* = {v}" for v in (0, 0.5, 1, 2))])


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not a minute.")
def main(small: bool) -> None:
    with nth.plot.style():
        figure = Figure(figsize=(7.0, 3.0), layout="constrained", dpi=150)
        left, right = figure.subplots(1, 2)
    phases(left, 8 if small else 80)
    convergence(right, [1, 2] if small else [1, 2, 4, 6, 9, 12, 16])
    print(critical())
    figure.savefig("propagation.png")


if __name__ == "__main__":
    main()
