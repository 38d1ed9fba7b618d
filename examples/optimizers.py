"""Errors of levels 2, 3 and 4 for SGD, momentum, RMSprop and Adam, against the width.

    python examples/optimizers.py            # some minutes on 2 cores
    python examples/optimizers.py --small    # seconds: what the checks run

Softmax cross-entropy, 3 outputs, tanh, 2 hidden layers, 6 training and 4 test points,
20 steps: the largest error of each level against the network trained by the same
optimizer, over all steps, points and outputs. Lines are medians over initializations,
bands their range. Prints errors at the largest width, the exponents with which they
fall with the width (with 95 % confidence intervals from resampled initializations), and
the share of runs that are reported (of which `valid_until` is finite); writes
optimizers.png.

Learning rates are such that training moves the outputs equally far at every width. For
SGD and momentum these are constant. RMSprop and Adam move each weight by about the
learning rate: the width² weights between hidden layers, whose gradients are of order
1/width, have learning rates and eps in proportion to 1/width, and the others, of order
1/√width, in proportion to 1/√width.
"""

import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import nth

jax.config.update("jax_enable_x64", True)

small = "--small" in sys.argv
widths = (8, 16) if small else (64, 128, 256, 512, 1024)
orders = (2, 3) if small else (2, 3, 4)
steps, seeds = (3, 2) if small else (20, 8)

# scale ↦ optimizer; the scale is 1 at width 64. The eps of RMSprop is inside the root.
OPTIMIZERS = {
    "SGD": lambda _: optax.sgd(0.5),
    "momentum 0.9": lambda _: optax.sgd(0.1, momentum=0.9),
    "RMSprop, eps 1e-4": lambda s: optax.rmsprop(1e-2 * s, eps=1e-4 * s**2),
    "Adam, eps 1e-4": lambda s: optax.adam(2e-3 * s, eps=1e-4 * s),
    "Adam, eps 1e-8": lambda s: optax.adam(2e-3 * s, eps=1e-8 * s),
    "Adam, eps_root 1e-6": lambda s: optax.adam(2e-3 * s, eps_root=1e-6 * s**2),
}
if small:  # compilation is what takes long
    OPTIMIZERS = {name: OPTIMIZERS[name] for name in ("SGD", "Adam, eps 1e-4")}
COLORS = {p: nth.plot.level_color(p) for p in (2, 3, 4)}


def by_layer(scaled, width):
    """The optimizer with the scale of each layer."""

    def labels(network):
        outer = jax.tree.map(lambda _: "outer", network)
        return eqx.tree_at(lambda network: network.weights[1], outer, "hidden")

    scale = 64 / width
    return optax.multi_transform(
        {"hidden": scaled(scale), "outer": scaled(scale**0.5)}, labels
    )


def largest_errors(width, seed, scaled):
    """For each level the largest error, and whether the run is reported."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, 10))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    loss = nth.SoftmaxCrossEntropy()
    problem = nth.Problem(x[:6], np.arange(6) % 3, x[6:], loss=loss)
    network = nth.MLP(10, width, 2, out_size=3, key=jax.random.key(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nth.WindowWarning)
        optimizer = by_layer(scaled, width)
        compared = nth.compare_discrete(network, problem, steps, optimizer, orders)
    rows = []
    for p in orders:
        level, truth = compared.solutions[p], compared.truth
        differences = [level.train - truth.train, level.test - truth.test]
        error = max(float(jnp.max(jnp.abs(each))) for each in differences)
        rows.append((error, float(np.isfinite(level.valid_until))))
    return rows


def slopes(errors):
    """The exponent of the median error, and a 95 % interval by the bootstrap."""

    def fitted(chosen):
        medians = np.median(errors[:, chosen], axis=1)
        return np.polyfit(np.log(widths), np.log(medians), 1)[0]

    draws = np.random.default_rng(0).integers(seeds, size=(1000, seeds))
    low, high = np.quantile([fitted(draw) for draw in draws], [0.025, 0.975])
    return fitted(np.arange(seeds)), low, high


results = {}  # name: (width, seed, level, (error, reported))
for name, scaled in OPTIMIZERS.items():
    results[name] = np.array(
        [[largest_errors(w, s, scaled) for s in range(seeds)] for w in widths]
    )
    for k, p in enumerate(orders):
        errors, reported = results[name][:, :, k, 0], results[name][:, :, k, 1]
        slope, low, high = slopes(errors)
        print(
            f"{name:20s} p = {p}: {np.median(errors[-1]):.1e} at width {widths[-1]}, "
            f"exponent {slope:+.2f} [{low:+.2f}, {high:+.2f}], reported "
            f"{100 * reported.mean():.0f} %",
            flush=True,
        )

with nth.plot.style():
    figure = Figure(figsize=(7, 5), layout="constrained", dpi=150)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
for axis, (name, table) in zip(panels, results.items(), strict=False):
    for k, p in enumerate(orders):
        errors = table[:, :, k, 0]
        axis.fill_between(
            widths, errors.min(1), errors.max(1), color=COLORS[p], alpha=0.15, lw=0
        )
        median = np.median(errors, axis=1)
        axis.loglog(
            widths, median, "o-", ms=3, lw=1.2, color=COLORS[p], label=f"$p = {p}$"
        )
    axis.set_title(name, fontsize=9)
    axis.set_xticks(widths, [str(w) for w in widths])
    axis.minorticks_off()
figure.supxlabel("width", fontsize=9)
figure.supylabel("largest error of the outputs", fontsize=9)
figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside upper center",
    ncols=len(orders),
    frameon=False,
    fontsize=9,
)
figure.savefig("optimizers.png")
