"""Residual and convolutional networks: the NTK of finite ones beside its limit.

    python examples/theory/infinite_networks.py            # minutes on 2 cores
    python examples/theory/infinite_networks.py --small    # seconds: for the checks

Prints a table and writes infinite_networks.png.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _law import axes, interval, over_widths, whole_decades
from jax.scipy.special import erf
from tabulate import tabulate

import nth
from nth.infinite import Activation, Conv, Dense, Flatten, GlobalAveragePool, Residual

jax.config.update("jax_enable_x64", True)

POINTS = jnp.asarray([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
DRAWN = jax.random.normal(jax.random.key(0), (2, 2, 5, 5))  # channels first
IMAGES = jnp.stack([DRAWN[0], 0.6 * DRAWN[0] + 0.8 * DRAWN[1]])
SIGMA = 1.5
ACT = Activation("erf")


def drawn(key: jax.Array, *shape: int) -> jax.Array:
    """Weights of the "standard" parameterization."""
    fan_in = math.prod(shape[-1:] if len(shape) == 1 else shape[1:])
    return SIGMA / fan_in**0.5 * jax.random.normal(key, shape)


class ResNet(eqx.Module):
    """h ← h + W₂ φ(W₁ φ(h)), twice."""

    weights: list[jax.Array]
    last: jax.Array

    def __init__(self, width: int, key: jax.Array):
        shapes = [(width, 3), *[(width, width)] * 4]
        *keys, last = jax.random.split(key, 6)
        self.weights = [drawn(k, *shape) for k, shape in zip(keys, shapes, strict=True)]
        self.last = drawn(last, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, *blocks = self.weights
        h = first @ x
        for inner, outer in zip(blocks[::2], blocks[1::2], strict=True):
            h = h + outer @ erf(inner @ erf(h))
        return jnp.vdot(self.last, erf(h))


class CNN(eqx.Module):
    """Two convolutions with 3 × 3 places, then a flattened or a pooled last layer."""

    convs: list[jax.Array]
    last: jax.Array
    pooled: bool = eqx.field(static=True)

    def __init__(self, pooled: bool, width: int, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.convs = [
            drawn(k, width, fan, 3, 3)
            for k, fan in zip(keys[:2], (2, width), strict=True)
        ]
        self.last = drawn(keys[2], width if pooled else 25 * width)
        self.pooled = pooled

    def __call__(self, x: jax.Array) -> jax.Array:
        for weights in self.convs:
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
            places = [
                padded[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)
            ]
            patches = jnp.stack(places, axis=1).reshape(-1, 25)
            x = erf(weights.reshape(len(weights), -1) @ patches).reshape(-1, 5, 5)
        return jnp.vdot(self.last, jnp.mean(x, (1, 2)) if self.pooled else x.ravel())


class Case(NamedTuple):
    name: str
    layers: list[Any]
    x: jax.Array
    make: Callable[[int, jax.Array], Any]


def cases() -> list[Case]:
    block = Residual([ACT, Dense(SIGMA), ACT, Dense(SIGMA)])
    resnet = [Dense(SIGMA), block, block, ACT, Dense(SIGMA)]
    cnn = [Conv(3, SIGMA), ACT, Conv(3, SIGMA), ACT]
    heads = {"flattened": Flatten(), "pooled": GlobalAveragePool()}
    return [
        Case("residual", resnet, POINTS, ResNet),
        *(
            Case(
                f"convolutional, {name}",
                [*cnn, head, Dense(SIGMA)],
                IMAGES,
                lambda width, key, pooled=name == "pooled": CNN(pooled, width, key),
            )
            for name, head in heads.items()
        ),
    ]


def ntk_draws(case: Case, width: int, samples: int) -> np.ndarray:
    """K⁽²⁾/width at the two points, of many networks of one width."""

    def of_key(key: jax.Array) -> jax.Array:
        network = case.make(width, key)
        rows = jax.vmap(eqx.filter_grad(lambda f, x: f(x)), (None, 0))(network, case.x)
        parts = [jnp.vdot(leaf[0], leaf[1]) for leaf in jax.tree.leaves(rows)]
        return jnp.sum(jnp.stack(parts)) / width

    keys = jax.random.split(jax.random.key(width), samples)
    run = jax.jit(lambda keys: jax.lax.map(of_key, keys, batch_size=200))
    return np.asarray(run(keys))


def compared(widths: list[int], samples: int) -> None:
    figure, (left, right) = axes(2)
    figure.set_figheight(3.6)
    w, rows = np.array(widths), []
    for place, case in enumerate(cases()):
        kernels = nth.infinite.network_kernels(
            case.layers, case.x, parameterization="standard"
        )
        limit = float(kernels.ntk[0, 1])
        draws = np.stack([ntk_draws(case, m, samples) for m in widths]) / limit
        gaps, spreads = draws.mean(axis=1) - 1, draws.std(axis=1)
        errors = spreads / samples**0.5
        rows += zip([case.name] * len(w), w, gaps, errors, spreads, strict=True)
        points: Any = {"fmt": "o", "ms": 4, "capsize": 2, "label": case.name}
        points["color"] = nth.plot.level_color(2 + place)
        line: Any = {"color": points["color"], "lw": 0.8, "ls": "--"}
        middle, bars = interval(draws, np.std)
        left.errorbar(w, middle, bars, **points)
        left.plot(w, middle[-1] * (w[-1] / w) ** 0.5, **line)
        right.errorbar(w, np.abs(gaps), 1.96 * errors, **points)
        right.plot(w, np.abs(gaps[0]) * w[0] / w, **line)
    left.set(title="standard deviation", ylabel="relative to the limit of the NTK")
    right.set(title="distance of the mean from the limit")
    for axis in (left, right):
        over_widths(axis, widths, fontsize=8)
        axis.set_xlabel("width, or channels")
        whole_decades(axis)
    figure.savefig("infinite_networks.png")
    headers = ("network", "width", "mean NTK / limit - 1", "standard error", "spread")
    print(tabulate(rows, headers=headers, floatfmt=("", ".0f", ".4f", ".4f", ".3f")))


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not minutes.")
def main(small: bool) -> None:
    compared([4] if small else [4, 8, 16, 32], 200 if small else 8000)


if __name__ == "__main__":
    main()
