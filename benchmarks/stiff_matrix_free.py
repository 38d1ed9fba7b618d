"""ROCK4 against Tsit5 for the matrix-free hierarchy at long times.

    python benchmarks/stiff_matrix_free.py [n] [width] [T]

Classes of scikit-learn's digits as targets ±1, points of norm 1, two hidden layers,
tanh, p = 2, 3, 4 and the trained network. Prints steps, evaluations and the largest
error of the training outputs over four times, against ROCK4 at tolerances ten times
smaller than the smallest. Evaluations of rejected steps of ROCK4 are estimated by the
mean of the accepted ones. Tsit5 runs to T/10: its steps are at most 3.3/max|λ|.
"""

import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

import nth
from nth._integrate.solvers.chebyshev import ROCK4

jax.config.update("jax_enable_x64", True)


def dynamics_of(n, width, order):
    x, digits = (jnp.asarray(part[:n]) for part in load_digits(return_X_y=True))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    y = jnp.where(digits % 2 == 0, 1.0, -1.0)
    network = nth.MLP(64, width, 2, dtype=jnp.float64, key=jax.random.key(0))
    problem = nth.Problem(x, y)
    if order is None:
        return nth.GradientFlow(network, problem)
    return nth.MatrixFreeHierarchy(network, problem, order=order)


@eqx.filter_jit
def solve(dynamics, solver, ts, scale):
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(eqx.filter_jit(dynamics.vector_field)),
        solver,
        0.0,
        ts[-1],
        None,
        dynamics.initial_state(),
        saveat=diffrax.SaveAt(
            ts=ts, fn=lambda t, y, args: dynamics.outputs(y), solver_state=True
        ),
        stepsize_controller=diffrax.PIDController(
            rtol=1e-7 * scale, atol=1e-9 * scale, norm=dynamics.error_norm
        ),
        max_steps=20_000,
        throw=False,
    )
    assert solved.ys is not None  # as saveat is given: for the type checker
    return solved.ys, solved.stats, solved.solver_state


def evaluations(solver, stats, state):
    if isinstance(solver, diffrax.Tsit5):
        return 6 * int(stats["num_steps"]) + 1
    rejected = stats["num_rejected_steps"] / stats["num_accepted_steps"]
    return int(state.evaluations * (1 + rejected))


def main(n, width, last):
    for order in (2, 3, 4, None):
        dynamics = dynamics_of(n, width, order)
        ts = last * jnp.array([1e-3, 1e-2, 1e-1, 1.0])
        reference, *_ = solve(dynamics, ROCK4(), ts, 0.1)
        print(f"\n{dynamics.label}, n = {n}, width {width}")
        for solver, times in ((ROCK4(), ts), (diffrax.Tsit5(), ts[:-1])):
            for scale in (1.0, 1e2, 1e4):
                ys, stats, state = solve(dynamics, solver, times, scale)
                error = jnp.abs(ys - reference[: len(times)]).max()
                print(
                    f"  {type(solver).__name__} to {times[-1]:g}, rtol "
                    f"{1e-7 * scale:.0e}: {stats['num_accepted_steps']} steps, "
                    f"{stats['num_rejected_steps']} rejected, "
                    f"{evaluations(solver, stats, state)} evaluations, "
                    f"error {error:.1e}"
                )


if __name__ == "__main__":
    n, width, last = [*sys.argv[1:], *("512", "512", "1e4")[len(sys.argv) - 1 :]]
    main(int(n), int(width), float(last))
