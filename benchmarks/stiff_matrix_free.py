"""Stiff solvers for the matrix-free hierarchy beside Tsit5, at long times.

    python -m benchmarks stiff_matrix_free

512 of scikit-learn's digits, 0 against all others, points of norm 1, two hidden layers
of width 512, tanh, p = 2, 3 and the trained network, to T = 1e4; p = 4 with 32 digits,
since it diverges at t = 2,500 with 512. The error is the largest of the training
outputs over four times, relative to `LowRankRosenbrock` with a tenth of the smallest
tolerance. Tsit5 runs to T/10, at one tolerance; its evaluations to T are at least 6 for
each 3.3/ρ, by its stability.
"""

from collections.abc import Iterator

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array
from sklearn.datasets import load_digits

import nth
from nth._dynamics.stiffness import fastest_rate

from .record import Row

TOLERANCES = (1e-6, 1e-5)


def dynamics_of(n: int, width: int, order: int | None) -> nth.AbstractDynamics:
    x, digits = (jnp.asarray(part[:n]) for part in load_digits(return_X_y=True))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    problem = nth.Problem(x, jnp.where(digits == 0, 1.0, -1.0))
    network = nth.MLP(64, width, 2, dtype=jnp.float64, key=jax.random.key(0))
    if order is None:
        return nth.GradientFlow(network, problem)
    return nth.MatrixFreeHierarchy(network, problem, order=order)


def solved(
    dynamics: nth.AbstractDynamics,
    solver: diffrax.AbstractSolver,
    ts: Array,
    rtol: float,
) -> nth.Solution:
    # The gains are those that nth uses by default.
    gains = (0.3, 0.4) if isinstance(solver, nth.ROCK4) else (0.0, 1.0)
    controller = diffrax.PIDController(
        rtol=rtol,
        atol=rtol / 100,
        pcoeff=gains[0],
        icoeff=gains[1],
        norm=dynamics.error_norm,
    )
    return nth.integrate(
        dynamics, ts, solver=solver, stepsize_controller=controller, throw=False
    )


def measure(small: bool) -> list[Row]:
    if small:
        return list(rows(4, 8, 100.0, 2))
    points = {2: 512, 3: 512, 4: 32, None: 512}
    return [row for p, n in points.items() for row in rows(n, 512, 1e4, p)]


def rows(n: int, width: int, last: float, order: int | None) -> Iterator[Row]:
    dynamics = dynamics_of(n, width, order)
    ts = last * jnp.array([1e-3, 1e-2, 1e-1, 1.0])
    implicit = nth.LowRankRosenbrock(dynamics)
    reference = solved(dynamics, implicit, ts, TOLERANCES[0] / 10).train
    rate = fastest_rate(dynamics)
    assert rate is not None
    stiff: list[diffrax.AbstractSolver] = [implicit, nth.ROCK4()]
    runs = [(solver, rtol, ts) for solver in stiff for rtol in TOLERANCES]
    runs.append((diffrax.Tsit5(), TOLERANCES[0], ts[:-1]))
    for solver, rtol, times in runs:
        solution = solved(dynamics, solver, times, rtol)
        bound = 6 * float(times[-1] * rate) / 3.3
        error = jnp.abs(solution.train - reference[: len(times)]).max()
        name = f"{dynamics.label}, n = {n}, {type(solver).__name__} to {times[-1]:g}"
        evaluations = int(solution.stats["num_evaluations"])
        yield {
            "case": f"{name}, rtol {rtol:.0e}",
            "steps": int(solution.stats["num_steps"]),
            "rejected steps": int(solution.stats["num_rejected_steps"]),
            "evaluations": evaluations,
            "bound of Tsit5 / evaluations": bound / evaluations,
            "error": float(error),
        }
