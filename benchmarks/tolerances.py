"""What looser tolerances save: evaluations against the error of a prediction.

    python -m benchmarks tolerances

Digits, odd against even, two hidden layers, tanh, matrix-free form, with the solver
that `solver="auto"` chooses. For each order and relative tolerance (the absolute one
is 100 times smaller): the evaluations, the largest root-mean-square distance from the
trained network, integrated at 1e-9, and from the same hierarchy at 1e-9, which is the
integration error.
"""

import diffrax
import jax
import numpy as np
from sklearn.datasets import load_digits

import nth

from .record import Row

TOLERANCES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def problem_of(n: int) -> nth.Problem:
    images, numbers = map(np.asarray, load_digits(return_X_y=True))
    chosen = np.random.default_rng(0).permutation(len(images))[:n]
    x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
    return nth.Problem(x, np.where(numbers[chosen] % 2, 1.0, -1.0))


def distance(one: nth.Solution, other: nth.Solution) -> float:
    return float(np.sqrt(np.mean((one.train - other.train) ** 2, axis=1)).max())


def measure(small: bool) -> list[Row]:
    n, width, last = (8, 16, 2.0) if small else (256, 512, 10.0)
    problem = problem_of(n)
    network = nth.MLP(64, width, 2, key=jax.random.key(0))
    ts = np.geomspace(last / 100, last, 5)

    def solved(dynamics: nth.AbstractDynamics, rtol: float) -> nth.Solution:
        controller = diffrax.PIDController(rtol=rtol, atol=rtol / 100)
        return nth.integrate(
            dynamics, ts, stepsize_controller=controller, progress=False
        )

    truth = solved(nth.GradientFlow(network, problem), 1e-9)
    rows: list[Row] = []
    for order in (2,) if small else (2, 3, 4):
        hierarchy = nth.MatrixFreeHierarchy(network, problem, order=order)
        exact = solved(hierarchy, 1e-9)
        for rtol in (1e-7, 1e-2) if small else TOLERANCES:
            solution = solved(hierarchy, rtol)
            case = f"n = {n}, width {width}, t = {last:g}, p = {order}, rtol {rtol:.0e}"
            rows.append(
                {
                    "case": case,
                    "solver": solution.stats["solver"],
                    "evaluations": int(solution.stats["num_evaluations"]),
                    "error": distance(solution, truth),
                    "error of integration": distance(solution, exact),
                }
            )
    return rows
