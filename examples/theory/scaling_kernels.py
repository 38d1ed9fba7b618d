"""Sizes of the higher kernels: Theorem 2.3 and Corollary 2.4 of Huang & Yau (2020).

    python examples/theory/scaling_kernels.py           # a minute on 2 cores
    python examples/theory/scaling_kernels.py --small   # seconds

Prints the exponents of the width beside the published ones, and writes
scaling_kernels.png.
"""

import click
import jax
import jax.numpy as jnp
from _law import axes, medians, points, report

import nth

jax.config.update("jax_enable_x64", True)

PUBLISHED = {
    "K(3)": "-1 (Theorem 2.3: its limit is 0, the deviation -1)",
    "K(4)": "-1 (Theorem 2.3)",
    "dK(2)/dt at t = 0": "-1 (Corollary 2.4)",
}


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    widths = [16, 32, 64] if small else [32, 64, 128, 256, 512]
    problem = nth.Problem(points(3), jnp.asarray([1.0, -1.0, 1.0]))

    def measure(width: int, key: jax.Array) -> dict[str, jax.Array]:
        network = nth.MLP(4, width, 2, key=key)
        kernels = nth.kernels(network, problem, order=4, progress=False)
        g = (kernels[1] - problem.y_train) / 3
        return {
            "K(3)": jnp.max(jnp.abs(kernels[3])),
            "K(4)": jnp.max(jnp.abs(kernels[4])),
            "dK(2)/dt at t = 0": jnp.max(jnp.abs(kernels[3] @ g)),
        }

    count = 32 if small else 200
    options = {"key": jax.random.key(0), "batch_size": 100, "progress": not small}
    sweep = nth.scaling.sweep(measure, widths, count, **options)
    figure, (axis,) = axes(1)
    report("largest entry, median", medians(axis, sweep, PUBLISHED))
    axis.set_title("largest entry, median over initializations")
    axis.set_ylabel("largest entry")
    figure.savefig("scaling_kernels.png")


if __name__ == "__main__":
    main()
