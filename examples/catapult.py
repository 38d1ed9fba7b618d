"""The three phases of large learning rates: map, network, and levels of the hierarchy.

    python examples/catapult.py            # half a minute on 2 cores
    python examples/catapult.py --small    # seconds: what the checks run

A two-layer linear network at one point, target 0, trained at rates below 2/λ₀ (lazy),
between 2/λ₀ and 4/λ₀ (catapult) and beyond (divergent). Lines are the exact map,
`nth.catapult`, dots the trained network; they agree to rounding. Dashed lines
are levels 2 and 4. Prints a table and writes catapult.png.
"""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import nth

jax.config.update("jax_enable_x64", True)

small = "--small" in sys.argv
width, steps = (32, 12) if small else (1024, 40)
orders = {p: nth.plot.level_color(p) for p in (2, 4)}

network = nth.MLP(1, width, 1, activation="linear", key=jax.random.key(3))
problem = nth.Problem(jnp.ones((1, 1)), jnp.zeros(1))
f, ntk = (kernel.ravel()[0] for kernel in nth.kernels(network, problem, order=2))
critical = nth.max_learning_rate(network, problem)
print(f"width {width}: critical rate {critical:.6f}, 2/NTK {2 / ntk:.6f}")

with nth.plot.style():
    figure = Figure(figsize=(7.0, 4.2), layout="constrained", dpi=150)
    panels = figure.subplots(2, 3, sharex=True)
for (top, bottom), share in zip(panels.T, (0.8, 1.5, 2.1), strict=True):
    optimizer = optax.sgd(share * critical)
    exact = nth.catapult(f, ntk, share * critical, width, steps)
    with warnings.catch_warnings():  # divergence is what is shown here
        warnings.simplefilter("ignore")
        truth = nth.train(network, problem, steps, optimizer)
        levels = {
            p: nth.solve_discrete(network, problem, steps, optimizer, order=p)
            for p in orders
        }
    apart = np.nanmax(np.abs(exact.outputs - truth.train[:, 0]) / (1 + exact.loss))
    until = ", ".join(f"p = {p} {s.valid_until:.0f}" for p, s in levels.items())
    print(
        f"{exact.phase:9s} loss {exact.loss[0]:.2g}, largest "
        f"{np.nanmax(exact.loss):.2g}, last {exact.loss[-1]:.2g}; last NTK over 2/rate "
        f"{exact.ntk[-1] * share * critical / 2:.2f}; map from network {apart:.0e}; "
        f"window until step: {until}"
    )
    numbers = np.arange(steps + 1)
    top.semilogy(numbers, exact.loss, color="black", lw=1.2, label="map")
    top.semilogy(truth.ts, truth.loss, "k.", ms=5, label="network")
    for p, color in orders.items():
        top.semilogy(
            numbers, levels[p].loss, "--", color=color, lw=1.2, label=f"$p = {p}$"
        )
    top.set_ylim(1e-9, 1e7)
    top.set_title(f"{exact.phase}: rate {2 * share:.1f}/$\\lambda_0$", fontsize=10)
    bottom.plot(numbers, exact.ntk * share * critical, color="black", lw=1.2)
    bottom.axhline(2, color="grey", lw=0.8, ls=":")
    bottom.set_ylim(0, 5)
    bottom.set_xlabel("step")
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
panels[0, 0].set_ylabel("loss")
panels[1, 0].set_ylabel(r"rate $\times$ NTK")
figure.legend(
    *panels[0, 0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    frameon=False,
)
figure.savefig("catapult.png")
