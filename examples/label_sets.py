"""A thousand label sets from one set of kernels.

    python examples/label_sets.py            # under a minute on 2 cores
    python examples/label_sets.py --small    # seconds: what the checks run

The kernels depend on the network and the points alone. Here they are computed once for
24 handwritten digits, saved, and serve a thousand solves of level 3, batch after batch
under `jax.vmap`: 999 random labellings and the true one (odd or even). Prints how long
that took, and writes label_sets.png: the loss of each label set at level 2, where the
NTK is constant, and by how much it is different at level 3.
"""

import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import nth

jax.config.update("jax_enable_x64", True)

small = "--small" in sys.argv
n, width, sets = (6, 16, 20) if small else (24, 256, 1000)
last = 10.0

images, numbers = map(np.asarray, load_digits(return_X_y=True))
x = images[:n] / np.linalg.norm(images[:n], axis=1, keepdims=True)
true = np.where(numbers[:n] % 2, 1.0, -1.0)
random = np.random.default_rng(0).choice([-1.0, 1.0], size=(sets - 1, n))
labels = jnp.asarray(np.concatenate([true[None], random]))

network = nth.MLP(64, width, 2, key=jax.random.key(0))
problem = nth.Problem(x, true)

start = time.perf_counter()
kernels = jax.block_until_ready(nth.kernels(network, problem, order=3))
print(f"K(2) and K(3) of {n} points: {time.perf_counter() - start:.1f} s")
kernels.save("label_sets.npz", network, problem)
kernels = nth.Kernels.load("label_sets.npz", network, problem)


def losses(order):
    """The predicted loss at t = `last`, one for each labelling."""

    def of_labels(kernels, y):
        dynamics = nth.DenseHierarchy(kernels, nth.Problem(x, y), order=order)
        return nth.integrate(dynamics, [last], throw=False).loss[-1]

    @jax.jit
    def solve(kernels, labels):
        # Under vmap in batches, whose states stay in the processor's cache.
        return jax.lax.map(partial(of_labels, kernels), labels, batch_size=50)

    start = time.perf_counter()
    last_losses = jax.block_until_ready(solve(kernels, labels))
    first = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(solve(kernels, -labels))
    again = time.perf_counter() - start
    print(
        f"{sets} label sets at p = {order}: {first:.1f} s, and {again:.1f} s for "
        "another thousand, compiled already"
    )
    return np.asarray(last_losses)


by_level = {p: losses(p) for p in (2, 3)}
constant, moving = by_level[2], by_level[3]
print(
    f"loss at t = {last:g}, random labels: {np.mean(constant[1:]):.3f} at p = 2, "
    f"{np.mean(moving[1:]):.3f} at p = 3; true labels: {constant[0]:.3f}, "
    f"{moving[0]:.3f}"
)

with nth.plot.style():
    figure = Figure(figsize=(4.6, 3.4), layout="constrained", dpi=150)
    axis = figure.subplots()
change = 100 * (moving / constant - 1)
blue, orange = (nth.plot.level_color(p) for p in (2, 3))
axis.axhline(0, color="0.6", lw=0.8, ls="--", zorder=0)
axis.scatter(
    constant[1:], change[1:], s=6, alpha=0.4, color=blue, label="random labels"
)
axis.scatter(
    constant[0], change[0], s=70, marker="*", color=orange, label="true labels"
)
axis.set(
    xlabel=f"training loss at $t = {last:g}$, level 2 (constant NTK)",
    ylabel="change by level 3 (%)",
    title=f"{sets} label sets of {n} digits",
)
axis.legend(frameon=False)
figure.savefig("label_sets.png")
