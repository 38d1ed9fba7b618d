"""Laws in the width, each beside what was published.

    python examples/scaling.py                      # some minutes on 2 cores
    python examples/scaling.py --only kernels       # one of the two
    python examples/scaling.py --small              # seconds

Prints a table and writes scaling_correlators.png, scaling_kernels.png and so on.
"""

from collections.abc import Callable
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
KEY = jax.random.key(0)
Row = tuple[str, nth.scaling.Exponent, str]


def points(n: int, d: int = 4) -> jax.Array:
    """Unit vectors, all within a right angle of each other."""
    x = jnp.ones(d) + jax.random.normal(jax.random.key(1), (n, d))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def correlators(small: bool, axis: Axes) -> list[Row]:
    """Dyer & Gur-Ari (2020), Table 1: three hidden layers, four inputs."""
    widths = [4, 8, 16] if small else [32, 64, 128, 256]
    x = points(4).astype(jnp.float32)

    def measure(activation: str) -> nth.scaling.Measure:
        def one(width: int, key: jax.Array) -> dict[str, jax.Array]:
            drawn = nth.MLP(4, width, 3, activation=activation, key=key)
            network = jax.tree.map(lambda w: w.astype(jnp.float32), drawn)

            def f(network: nth.MLP, i: int) -> jax.Array:
                return network(x[i])

            outputs = [f(network, i) for i in range(4)]
            first, second = (jax.grad(f)(network, i) for i in range(2))

            def slope(network: nth.MLP) -> jax.Array:
                return jax.jvp(lambda net: f(net, 2), (network,), (first,))[1]

            bent = jax.jvp(slope, (network,), (second,))[1]
            return {
                "f f": outputs[0] * outputs[1],
                "df df": jnp.vdot(flat(first), flat(second)),
                "df df ddf f": bent * outputs[3],
                "(df df ddf)^2": bent**2,
            }

        return one

    published = {
        "f f": (0, (-0.02, 0.003, -0.02)),
        "df df": (0, (0, 0, 0)),
        "df df ddf f": (-1, (-0.98, -1.03, -1.01)),
        "(df df ddf)^2": (-2, (-2.05, -2.01, -1.99)),
        "variance of df df": (-1, (-1.01, -1.02, -0.99)),
    }
    rows = []
    for which, activation in enumerate(("linear", "relu", "tanh")):
        if small and activation != "tanh":
            continue
        found = nth.scaling.sweep(
            measure(activation), widths, 8 if small else 1000, key=KEY, batch_size=100
        )
        for (name, (predicted, fitted)), colour in zip(
            published.items(), COLOURS, strict=True
        ):
            spread = name.startswith("variance")
            values = found.values["df df" if spread else name]
            statistic = np.var if spread else np.mean
            law = nth.scaling.fit(widths, values, statistic=statistic)
            words = f"{predicted} predicted, {fitted[which]} fitted"
            name = name if spread else f"E {name}"
            rows.append((f"{name}, {activation}", law, words))
            if activation == "tanh":
                label = (
                    name[2:]
                    .replace("ddf", r"\partial^2\!f")
                    .replace("df", r"\partial\!f")
                )
                label = f"${label}$" if not spread else r"variance of $K^{(2)}$"
                draw(axis, widths, np.abs(statistic(values, -1)), law, label, colour)
    axis.set_title("tanh: averages over initialisations", fontsize=9)
    return rows


def kernels(small: bool, axis: Axes) -> list[Row]:
    """Theorem 2.3 and Corollary 2.4."""
    widths = [4, 8, 16] if small else [32, 64, 128, 256, 512]
    x = points(3)
    problem = nth.Problem(x, jnp.asarray([1.0, -1.0, 1.0]))

    def measure(width: int, key: jax.Array) -> dict[str, jax.Array]:
        network = nth.MLP(4, width, 2, key=key)
        formed = nth.kernels(network, problem, 4, progress=False)
        g = (formed[1] - problem.y_train) / 3
        return {
            "K(3)": jnp.max(jnp.abs(formed[3])),
            "K(4)": jnp.max(jnp.abs(formed[4])),
            "dK(2)/dt at t = 0": jnp.max(jnp.abs(formed[3] @ g)),
        }

    words = {
        "K(3)": "-1 (Theorem 2.3: its limit is 0, the deviation -1)",
        "K(4)": "-1 (Theorem 2.3)",
        "dK(2)/dt at t = 0": "-1 (Corollary 2.4)",
    }
    found = nth.scaling.sweep(measure, widths, 4 if small else 100, key=KEY)
    return fitted(axis, found, words, "largest entry, median over initialisations")


def fitted(
    axis: Axes, found: nth.scaling.Sweep, words: dict[str, str], title: str
) -> list[Row]:
    rows = []
    for (name, published), colour in zip(words.items(), COLOURS, strict=False):
        values = found.values[name]
        law = nth.scaling.fit(found.widths, values, statistic=np.median)
        draw(axis, found.widths, np.median(values, axis=1), law, name, colour)
        rows.append((name, law, published))
    axis.set_title(title, fontsize=9)
    return rows


def draw(
    axis: Axes,
    widths: Any,
    sizes: np.ndarray,
    law: nth.scaling.Exponent,
    name: str,
    colour: str,
) -> None:
    w = np.asarray(widths, float)
    axis.plot(w, law.prefactor * w**law.slope, color=colour, lw=0.9, ls="--")
    axis.plot(w, sizes, "o", color=colour, ms=4, label=f"{name}: {law.slope:.2f}")
    axis.set(xscale="log", yscale="log", xlabel="width")
    axis.set_xticks(w, [str(width) for width in widths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False, fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)


LAWS: dict[str, Callable[[bool, Axes], list[Row]]] = {
    "correlators": correlators,
    "kernels": kernels,
}


@click.command()
@click.option(
    "--small",
    is_flag=True,
    help="Seconds, not minutes.",
)
@click.option("--only", type=click.Choice(list(LAWS)), help="One of the laws.")
def main(small: bool, only: str | None) -> None:
    for name in [only] if only else LAWS:
        figure = Figure(figsize=(4.8, 3.4), layout="constrained", dpi=150)
        rows = LAWS[name](small, figure.subplots())
        table = [(what, str(law), published) for what, law, published in rows]
        print(tabulate(table, headers=(name, "measured [95%]", "published")), "\n")
        figure.savefig(f"scaling_{name}.png")


if __name__ == "__main__":
    main()
