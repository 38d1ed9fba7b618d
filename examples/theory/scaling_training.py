"""What training changes, and how little in a wide network.

    python examples/theory/scaling_training.py           # a few minutes on 2 cores
    python examples/theory/scaling_training.py --small   # seconds

Networks are trained by gradient flow to t = 20. Prints the exponents of the width of
the relative Frobenius changes of parameters, NTK and NNGP kernel, beside the published
ones, and writes scaling_training.png.
"""

from collections.abc import Sequence

import click
import equinox as eqx
import jax
import jax.numpy as jnp
from _law import axes, medians, points, report

import nth

jax.config.update("jax_enable_x64", True)

LAST = 20.0
PUBLISHED = {
    "parameters": "falls with the width",
    "NTK": "falls with the width; -1 (Corollary 2.4)",
    "NNGP": "falls with the width",
}


def change(new: Sequence[jax.Array], old: Sequence[jax.Array]) -> jax.Array:
    """‖new − old‖ over ‖old‖, of all entries."""
    moved = sum(jnp.sum((a - b) ** 2) for a, b in zip(new, old, strict=True))
    return jnp.sqrt(moved / sum(jnp.sum(b**2) for b in old))


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    widths = [16, 32, 64] if small else [32, 64, 128, 256]
    problem = nth.Problem(points(4), jnp.asarray([1.0, -1.0, 1.0, -1.0]))

    def measure(width: int, key: jax.Array) -> dict[str, jax.Array]:
        network = nth.MLP(4, width, 2, key=key)
        trained = nth.gradient_flow(network, problem, [LAST], max_steps=2**11).state
        after = eqx.combine(trained, network)
        ntks = [
            nth.kernels(net, problem, order=2, progress=False)[2]
            for net in (after, network)
        ]
        features = [nth.nngp(net, problem) for net in (after, network)]
        return {
            "parameters": change(jax.tree.leaves(trained), network.weights),
            "NTK": change(ntks[:1], ntks[1:]),
            "NNGP": change(features[:1], features[1:]),
        }

    count = 4 if small else 96
    options = {"key": jax.random.key(0), "batch_size": 100, "progress": not small}
    sweep = nth.scaling.sweep(measure, widths, count, **options)
    figure, (axis,) = axes(1)
    report("relative change, median", medians(axis, sweep, PUBLISHED))
    axis.set_title(f"relative change from $t = 0$ to {LAST:g}, medians")
    axis.set_ylabel("relative change in Frobenius norm")
    figure.savefig("scaling_training.png")


if __name__ == "__main__":
    main()
