"""Evaluations against error, for each solver: dense and matrix-free hierarchies.

    python examples/theory/solvers.py            # a minute on 2 cores
    python examples/theory/solvers.py --small    # seconds: what the checks run

Prints a table and writes solvers.png.
"""

import click
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _sphere import data
from matplotlib.figure import Figure
from tabulate import tabulate

import nth

jax.config.update("jax_enable_x64", True)

COLORS = {
    "Tsit5": "#0072B2",
    "ROCK4": "#D55E00",
    "DenseExponential": "#009E73",
    "DenseRosenbrock": "#CC79A7",
    "LowRankRosenbrock": "#E69F00",
}


def solvers(dynamics: nth.AbstractDynamics) -> dict[str, diffrax.AbstractSolver]:
    result = {"Tsit5": diffrax.Tsit5(), "ROCK4": nth.ROCK4()}
    if isinstance(dynamics, nth.DenseHierarchy):
        result["DenseExponential"] = nth.DenseExponential(dynamics)
        result["DenseRosenbrock"] = nth.DenseRosenbrock(dynamics)
    else:
        result["LowRankRosenbrock"] = nth.LowRankRosenbrock(dynamics)
    return result


def solve(
    dynamics: nth.AbstractDynamics,
    last: float,
    solver: diffrax.AbstractSolver,
    r: jax.Array,
) -> nth.Solution:
    controller = diffrax.PIDController(
        rtol=r, atol=r / 100, norm=dynamics.error_norm, dtmin=1e-14
    )
    return nth.integrate(
        dynamics,
        [last / 30, last / 5, last],
        solver=solver,
        stepsize_controller=controller,
        max_steps=2**20,
    )


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not a minute.")
def main(small: bool) -> None:
    n, width, last = (4, 16, 30.0) if small else (24, 256, 2000.0)
    problem = data(n, 10)
    network = nth.MLP(10, width, 1, key=jax.random.key(1))
    models = {
        "dense form, level 2": nth.DenseHierarchy(
            nth.kernels(network, problem, order=2), problem
        ),
        "matrix-free form, level 2": nth.MatrixFreeHierarchy(network, problem, order=2),
    }
    tolerances = np.logspace(-3, -5, 2) if small else np.logspace(-3, -9, 7)
    kernels = nth.kernels(network, problem, order=2)
    exact = nth.closed_form(kernels, problem, [last / 30, last / 5, last]).train
    with nth.plot.style():
        figure = Figure(figsize=(7, 3.4), layout="constrained", dpi=150)
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
    rows = []
    for axis, (title, dynamics) in zip(axes, models.items(), strict=True):
        for name, solver in solvers(dynamics).items():
            # As arrays the tolerances share one compiled solve.
            solutions = [
                solve(dynamics, last, solver, jnp.asarray(r)) for r in tolerances
            ]
            errors = [float(jnp.max(jnp.abs(s.train - exact))) for s in solutions]
            work = [int(s.stats["num_evaluations"]) for s in solutions]
            axis.loglog(errors, work, "o-", ms=4, color=COLORS[name], label=name)
            rows += [
                [title, name, f"{r:.0e}", f"{e:.1e}", w]
                for r, e, w in zip(tolerances, errors, work, strict=True)
            ]
        axis.set_title(title)
        axis.set_xlabel("largest error of the outputs")
    axes[0].invert_xaxis()  # of both
    axes[0].set_ylabel("evaluations of the vector field")
    lines = {line.get_label(): line for axis in axes for line in axis.lines}
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
        fontsize=8,
    )
    figure.savefig("solvers.png")
    headers = ["form", "solver", "rtol", "error", "evaluations"]
    print(tabulate(rows, headers=headers))


if __name__ == "__main__":
    main()
