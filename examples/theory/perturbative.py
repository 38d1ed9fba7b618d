"""The closed O(1/width) correction, beside level 4 and the trained network.

    python examples/theory/perturbative.py            # two minutes on 2 cores
    python examples/theory/perturbative.py --small    # seconds: what the checks run

Prints a table with the exponents of the width, and writes perturbative.png.
"""

import click
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _law import over_widths
from matplotlib.figure import Figure
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

NAMES = (
    "correction to p = 2",
    "its distance from p = 4",
    "its distance from the network",
)
COLOURS = ("#0072B2", "#009E73", "#D55E00")


def tight(dynamics: nth.AbstractDynamics) -> diffrax.PIDController:
    """Tolerances far below what is measured."""
    return diffrax.PIDController(rtol=1e-10, atol=1e-12, norm=dynamics.error_norm)


def distances(problem: nth.Problem, width: int, seeds: int, t: float) -> list[float]:
    """Medians over seeds of root-mean-square differences on the test points."""
    ts = jnp.asarray([t])

    @jax.jit
    def one(key: jax.Array) -> list[jax.Array]:
        network = nth.MLP(3, width, 1, key=key)
        kernels = nth.kernels(network, problem, order=4, progress=False)
        closed = nth.perturbative(kernels, problem, ts).test
        level = nth.DenseHierarchy(kernels, problem)
        flow = nth.GradientFlow(network, problem)
        others = (
            nth.closed_form(kernels, problem, ts),
            nth.integrate(level, ts, stepsize_controller=tight(level)),
            nth.integrate(flow, ts, stepsize_controller=tight(flow)),
        )
        return [jnp.sqrt(jnp.mean((closed - o.test) ** 2)) for o in others]

    keys = jax.random.split(jax.random.key(0), seeds)
    return [float(np.median(column)) for column in zip(*map(one, keys), strict=True)]


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    problem = nth.Problem(x[:3], np.array([1.0, -1.0, 1.0]), x[3:])
    widths = [16, 32] if small else [32, 64, 128, 256, 512]
    table = np.array([distances(problem, w, 2 if small else 15, 5.0) for w in widths])
    slopes = [np.polyfit(np.log(widths), np.log(c), 1)[0] for c in table.T]
    rows = [[w, *row] for w, row in zip(widths, table, strict=True)]
    print(tabulate([*rows], headers=["width", *NAMES], floatfmt=".2e"))
    print("exponents of the width:", ", ".join(f"{slope:.2f}" for slope in slopes))
    figure = Figure(figsize=(4.8, 3.3), layout="constrained", dpi=150)
    axis = figure.subplots()
    for name, color, column, slope in zip(NAMES, COLOURS, table.T, slopes, strict=True):
        label = f"{name}: $w^{{{slope:.2f}}}$"
        axis.plot(widths, column, "o-", color=color, lw=1.2, ms=4, label=label)
    axis.set_title("root-mean-square difference, test points", fontsize=9)
    over_widths(axis, widths, fontsize=8)
    axis.set_xlabel("width $w$")
    figure.savefig("perturbative.png")


if __name__ == "__main__":
    main()
