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
from _law import axes, draw
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

NAMES = (
    "correction to p = 2",
    "its distance from p = 4",
    "its distance from the network",
)
COLORS = tuple(nth.plot.level_color(p) for p in (2, 4, 3))
LAST = 5.0


def tight(dynamics: nth.AbstractDynamics) -> diffrax.PIDController:
    """Tolerances far below what is measured."""
    return diffrax.PIDController(rtol=1e-10, atol=1e-12, norm=dynamics.error_norm)


def distances(problem: nth.Problem, width: int, seeds: int, t: float) -> np.ndarray:
    """Root-mean-square differences on the test points, (difference, seed)."""
    ts = jnp.asarray([t])

    @jax.jit
    def of_network(key: jax.Array) -> list[jax.Array]:
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
    return np.array([of_network(key) for key in keys], float).T


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    problem = nth.Problem(x[:3], np.array([1.0, -1.0, 1.0]), x[3:])
    widths = [8, 16, 32] if small else [32, 64, 128, 256, 512]
    drawn = [distances(problem, w, 3 if small else 15, LAST) for w in widths]
    values = np.stack(drawn, axis=1)  # (difference, width, seed)
    rows = zip(widths, *np.median(values, axis=2), strict=True)
    print(tabulate([*rows], headers=["width", *NAMES], floatfmt=".2e"))
    figure, (axis,) = axes(1)
    for name, color, differences in zip(NAMES, COLORS, values, strict=True):
        law = nth.scaling.fit(widths, differences, statistic=np.median)
        print(f"{name}: exponent {law}")
        draw(axis, widths, differences, np.median, law, name, color)
    axis.set_title(f"test points, $t = {LAST:g}$, median")
    axis.set_ylabel("root-mean-square difference")
    figure.savefig("perturbative.png")


if __name__ == "__main__":
    main()
