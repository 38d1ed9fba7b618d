"""The NTK along training: each level's prediction beside the trained network.

    python examples/theory/kernel_motion.py            # a minute on 2 cores
    python examples/theory/kernel_motion.py --small    # seconds: what the checks run

Prints the assumptions and scales of the theorems and writes kernel_motion.png.
"""

import click
import jax
import numpy as np
from _sphere import data
from matplotlib.figure import Figure
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

COLORS = {
    "p = 3": nth.plot.level_color(3),
    "p = 4": nth.plot.level_color(4),
    "trained network": "black",
}
TITLES = {
    "change": "relative change",
    "distance": "kernel distance",
    "alignment": "alignment with the targets",
    "effective_rank": "effective rank",
}


def report(network: nth.MLP, problem: nth.Problem, width: int) -> None:
    tanh = nth.theory.check_activation("tanh", order=4)
    points = nth.theory.check_data(problem.x_train, order=4)
    kernels = nth.kernels(network, problem, order=2)
    scales = nth.theory.bounds(kernels, width)
    at_end = scales.error(4, scales.window)
    rows = [
        ["2.1: tanh, derivatives up to the 9th", "holds" if tanh.holds else "fails"],
        ["2.2: smallest singular values, r = 2", f"{points.smallest[1]:.3f}"],
        [f"2.2: the same, r = {len(points.smallest)}", f"{points.smallest[-1]:.3f}"],
        ["smallest eigenvalue of the NTK", f"{scales.smallest_eigenvalue:.3f}"],
        ["time to reach 0.01, (n/λ) ln(n/ε)", f"{scales.time():.3g}"],
        ["window of eq. 17, constants 1", f"{scales.window:.3g}"],
        ["bound of level 4 at the end of the window", f"{at_end:.1g}"],
        [
            "width for p = 4 up to the end, constants 1",
            f"{scales.width_for(4, 0.1):.1g}",
        ],
        ["κ, the measure of laziness", f"{nth.theory.laziness(network, problem):.3f}"],
    ]
    print(tabulate(rows))


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not a minute.")
def main(small: bool) -> None:
    n, width = (4, 32) if small else (12, 256)
    problem = data(n, 10)
    network = nth.MLP(10, width, 2, key=jax.random.key(1))
    report(network, problem, width)
    ts = np.linspace(0.0, 5.0 if small else 80.0, 3 if small else 41)
    kernels = nth.kernels(network, problem, order=4)
    models: dict[str, nth.AbstractDynamics] = {
        "p = 3": nth.DenseHierarchy(kernels, problem, order=3),
        "p = 4": nth.DenseHierarchy(kernels, problem),
        "trained network": nth.GradientFlow(network, problem),
    }
    paths = {name: nth.kernel_along(model, ts) for name, model in models.items()}
    with nth.plot.style():
        figure = Figure(figsize=(7.0, 4.4), layout="constrained", dpi=150)
        axes = figure.subplots(2, 2, sharex=True).ravel()
    for name, path in paths.items():
        motion = nth.theory.motion(path, problem)
        style = {"lw": 3, "alpha": 0.35} if name == "trained network" else {"lw": 1.3}
        for axis, part in zip(axes, TITLES, strict=True):
            axis.plot(
                ts, getattr(motion, part), color=COLORS[name], label=name, **style
            )
    for axis, title in zip(axes, TITLES.values(), strict=True):
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[2:]:
        axis.set_xlabel("time $t$")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig("kernel_motion.png")
    modes = nth.spectrum_along(models["trained network"], ts[[0, -1]], 3)
    print("largest eigenvalues at the start:", np.round(modes.eigenvalues[0], 3))
    print("largest eigenvalues at the end:  ", np.round(modes.eigenvalues[1], 3))


if __name__ == "__main__":
    main()
