"""Averages of derivatives over initializations: Table 1 of Dyer & Gur-Ari (2020).

    python examples/theory/scaling_correlators.py           # ten minutes on 2 cores
    python examples/theory/scaling_correlators.py --small   # seconds

Three hidden layers, four inputs, as theirs. Prints the exponents of the width beside
those that they fitted, and writes scaling_correlators.png.
"""

from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from _law import COLORS, axes, draw, points, report

import nth

jax.config.update("jax_enable_x64", True)

# What is averaged: the power predicted, those fitted for linear, ReLU, tanh, a label.
PUBLISHED = {
    "f f": (0, (-0.02, 0.003, -0.02), "$f f$"),
    "df df": (0, (0, 0, 0), r"$\partial f\,\partial f$"),
    "df df ddf f": (
        -1,
        (-0.98, -1.03, -1.01),
        r"$\partial f\,\partial f\,\partial^2\!f\,f$",
    ),
    "(df df ddf)^2": (
        -2,
        (-2.05, -2.01, -1.99),
        r"$(\partial f\,\partial f\,\partial^2\!f)^2$",
    ),
    "variance of df df": (-1, (-1.01, -1.02, -0.99), r"variance of $K^{(2)}$"),
}


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def measure(activation: str) -> nth.scaling.Measure:
    x = points(4).astype(jnp.float32)

    def averaged(width: int, key: jax.Array) -> dict[str, jax.Array]:
        network = nth.MLP(
            4, width, 3, activation=activation, dtype=jnp.float32, key=key
        )

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

    return averaged


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    widths = [8, 16, 32] if small else [64, 128, 256, 512, 1024]
    figure, panels = axes(3)
    rows = []
    for column, activation in enumerate(("linear", "relu", "tanh")):
        sweep = nth.scaling.sweep(
            measure(activation),
            widths,
            200 if small else 1000,
            key=jax.random.key(0),
            batch_size=20,
            progress=not small,
        )
        for (name, (predicted, fitted, label)), color in zip(
            PUBLISHED.items(), COLORS, strict=True
        ):
            spread = name.startswith("variance")
            values = sweep.values["df df" if spread else name]
            statistic = np.var if spread else np.mean
            law = nth.scaling.fit(widths, values, statistic=statistic)
            published = f"{predicted} predicted, {fitted[column]} fitted"
            rows.append((f"{name}, {activation}", law, published))
            draw(panels[column], widths, values, statistic, law, label, color)
        panels[column].set_title(activation)
        legend = panels[column].get_legend()
        assert legend is not None
        legend.remove()  # the exponents are in the table
    panels[0].set_ylabel("average over initializations")
    handles, _ = panels[0].get_legend_handles_labels()
    labels = [label for *_, label in PUBLISHED.values()]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    report("average", rows)
    figure.savefig("scaling_correlators.png")


if __name__ == "__main__":
    main()
