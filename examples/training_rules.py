"""Steps, momentum, mini-batches, weight decay: errors by level and by width.

    python examples/training_rules.py            # minutes on 2 cores
    python examples/training_rules.py --small    # seconds: what the checks run

Softmax cross-entropy, 3 outputs, tanh, 2 hidden layers, 6 training points, 16 steps of
rate 0.5: the largest error of each level against the network really trained by the same
rule, the median over initializations. Prints the errors at width 256 and the exponents
with which they fall with the width, and writes training_rules.png.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import nth

jax.config.update("jax_enable_x64", True)

small = "--small" in sys.argv
widths = (8, 16) if small else (32, 64, 128, 256)
orders = (2, 3) if small else (2, 3, 4, 5)
steps, seeds = (3, 1) if small else (16, 3)

RULES = {
    "plain": nth.GradientDescent(0.5),
    "momentum 0.5": nth.GradientDescent(0.5, momentum=0.5),
    "batches of 3": nth.GradientDescent(0.5, batch_size=3, key=jax.random.key(7)),
    "weight decay 0.001": nth.GradientDescent(0.5, weight_decay=1e-3),
}
if small:  # compilation is what takes long
    RULES = {name: RULES[name] for name in ("plain", "batches of 3")}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def largest_errors(width, seed, rule):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, 10))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    loss = nth.SoftmaxCrossEntropy()
    problem = nth.Problem(x[:6], np.arange(6) % 3, x[6:], loss=loss)
    network = nth.MLP(10, width, 2, out_size=3, key=jax.random.key(seed))
    found = nth.compare(network, problem, steps, orders, rule=rule)
    return [
        max(
            float(jnp.max(jnp.abs(getattr(found.solutions[p], points) - truth)))
            for points, truth in (
                ("train", found.truth.train),
                ("test", found.truth.test),
            )
        )
        for p in orders
    ]


errors = {
    name: np.median(
        [[largest_errors(w, s, rule) for w in widths] for s in range(seeds)], axis=0
    )
    for name, rule in RULES.items()
}

shown = widths[-1]
print(f"largest error after up to {steps} steps, width {shown}; exponent in the width")
print("".ljust(20) + "".join(f"p = {p}".rjust(18) for p in orders))
for name, table in errors.items():
    slopes = np.polyfit(np.log(widths), np.log(table), 1)[0]
    cells = [
        f"{e:.1e} ({slope:+.2f})" for e, slope in zip(table[-1], slopes, strict=True)
    ]
    print(name.ljust(20) + "".join(cell.rjust(18) for cell in cells))

figure = Figure(figsize=(9.6, 2.9), layout="constrained", dpi=150)
panels = figure.subplots(1, len(RULES), sharey=True)
for axis, (name, table) in zip(panels, errors.items(), strict=True):
    for k, p in enumerate(orders):
        axis.loglog(
            widths,
            table[:, k],
            "o-",
            ms=3,
            lw=1.2,
            color=COLOURS[k],
            label=f"$p = {p}$",
        )
    axis.set_title(name, fontsize=9)
    axis.set_xlabel("width", fontsize=9)
    axis.set_xticks(widths, [str(w) for w in widths])
    axis.minorticks_off()
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("largest error of the outputs", fontsize=9)
figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=len(orders),
    frameon=False,
    fontsize=9,
)
figure.savefig("training_rules.png")
