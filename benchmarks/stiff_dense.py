"""Stiff solves of the dense hierarchy to long times, against SciPy's stiff solvers.

    python -m benchmarks stiff_dense

Digits 0 and 1 of scikit-learn with targets ±1, a tanh network of two hidden layers, and
times from 1 to T. SciPy's solvers get an analytic Jacobian and the smallest possible
state: f at level 2, (f, ∫g) at level 3, (f, ∫g, ∫g⊗∫g) at level 4. Each row has the
number of vector-field evaluations, the largest error of the training outputs at the
requested times against the closed form or, above level 2, a solve at tolerance 1e-10,
and wall seconds after compilation. The last column divides the seconds of a method by
those of `DenseExponential` at the same error, interpolated between its two tolerances.
"""

import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from sklearn.datasets import load_digits

import nth
from nth._integrate.solvers.exponential import DenseExponential
from nth._integrate.solvers.rosenbrock import DenseRosenbrock

from .record import Row

CASES = ((64, 2), (256, 2), (64, 3), (256, 3), (64, 4))
ENDS = (1e2, 1e5)
TIGHT = 1e-10
METHODS = ("LSODA", "BDF", "Radau")


def hierarchy(n, order, width):
    images, labels = load_digits(return_X_y=True)
    few = np.flatnonzero(np.isin(labels, [0, 1]))[:n]
    x = images[few] / np.linalg.norm(images[few], axis=1, keepdims=True)
    y = np.where(labels[few] == 1, 1.0, -1.0)
    key = jax.random.key(0)
    network = nth.MLP(64, width, 2, activation="tanh", key=key)
    problem = nth.Problem(jnp.asarray(x), jnp.asarray(y))
    kernels = nth.kernels(network, problem, order=order, progress=False)
    return nth.DenseHierarchy(kernels, problem)


def controller(dynamics, tolerance):
    return diffrax.PIDController(
        rtol=tolerance, atol=tolerance / 100, norm=dynamics.error_norm
    )


def nth_solve(solver, dynamics, ts, tolerance):
    """Evaluations, training outputs and seconds."""

    @eqx.filter_jit
    def solve(dynamics, ts):
        return nth.integrate(
            dynamics,
            ts,
            solver=solver(dynamics),
            stepsize_controller=controller(dynamics, tolerance),
            progress=False,
        )

    jax.block_until_ready(solve(dynamics, ts))
    solution, seconds = fastest(lambda: jax.block_until_ready(solve(dynamics, ts)))
    evaluations = solver.evaluations_per_step * int(solution.stats["num_steps"])
    return evaluations, np.asarray(solution.train), seconds


def fastest(solve):
    """The result of `solve`, and the minimum seconds of up to three runs."""
    seconds = []
    while True:
        start = time.perf_counter()
        solution = solve()
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 3 or sum(seconds) > 10:
            return solution, min(seconds)


def as_ivp(dynamics):
    """The vector field and its Jacobian for SciPy, of (f, ∫g, ∫g⊗∫g)."""
    f0, k2, *more = (np.asarray(k) for k in dynamics.levels)
    y, n = np.asarray(dynamics.problem.y_train), len(f0)
    k3 = more[0].reshape(-1, n) if more else None
    k4 = more[1].reshape(-1, n * n) if len(more) > 1 else None

    def ntk(state):
        kernel = k2
        if k3 is not None:
            kernel = kernel - (k3 @ state[n : 2 * n]).reshape(n, n)
        if k4 is not None:
            kernel = kernel + (k4 @ state[2 * n :]).reshape(n, n)
        return kernel

    def field(t, state):
        g = (state[:n] - y) / n
        rate = [-ntk(state) @ g]
        if k3 is not None:
            rate.append(g)
        if k4 is not None:
            rate.append(np.outer(g, state[n : 2 * n]).ravel())
        return np.concatenate(rate)

    def jacobian(t, state):
        g = (state[:n] - y) / n
        matrix = np.zeros((len(state), len(state)))
        matrix[:n, :n] = -ntk(state) / n
        if k3 is not None:  # symmetric in the first two slots
            matrix[:n, n : 2 * n] = (g @ k3.reshape(n, -1)).reshape(n, n)
            matrix[n : 2 * n, :n] = np.eye(n) / n
        if k4 is not None:
            matrix[:n, 2 * n :] = -(g @ k4.reshape(n, -1)).reshape(n, n * n)
            matrix[2 * n :, :n] = np.kron(np.eye(n), state[n : 2 * n, None]) / n
            matrix[2 * n :, n : 2 * n] = np.kron(g[:, None], np.eye(n))
        return matrix

    sizes = [0] if k3 is None else [0, n] if k4 is None else [0, n, n * n]
    start = np.concatenate([f0, np.zeros(sum(sizes))])
    return field, jacobian, start


def scipy_solve(dynamics, ts, method, tolerance):
    """Evaluations, training outputs and seconds."""
    field, jacobian, start = as_ivp(dynamics)

    def solve():
        return solve_ivp(
            field,
            (0, float(ts[-1])),
            start,
            method,
            np.asarray(ts),
            jac=jacobian,
            rtol=tolerance,
            atol=tolerance / 100,
        )

    solution, seconds = fastest(solve)
    return solution.nfev, solution.y[: len(dynamics.levels[0])].T, seconds


def at_error(error, rows):
    """Seconds at an error, by a power law through two `rows` of (error, seconds)."""
    (e1, s1), (e2, s2) = rows
    if e1 < 10 * e2:  # both exact, at level 2
        return s1
    slope = np.log(s2 / s1) / np.log(e2 / e1)
    return s1 * (error / e1) ** slope


def compare(n, order, end, width, times):
    dynamics = hierarchy(n, order, width)
    ts = jnp.logspace(0, np.log10(end), times)
    if order == 2:
        kernels = nth.Kernels(dynamics.levels)
        reference = nth.closed_form(kernels, dynamics.problem, ts).train
    else:
        reference = nth_solve(DenseRosenbrock, dynamics, ts, TIGHT)[1]
    case = f"n = {n}, p = {order}, T = {end:g}"
    points: list[tuple[float, float]] = []
    for solver in (DenseRosenbrock, DenseExponential):
        points = []  # after the loop, those of DenseExponential
        for tolerance in (1e-7, 1e-9):
            solved = nth_solve(solver, dynamics, ts, tolerance)
            row = row_of(case, solver.__name__, tolerance, solved, reference)
            points.append((row["error"], row["time (s)"]))
            yield row
    # At level 4 the Jacobian has (2n + n²)² entries: Radau also factors a complex
    # matrix of this size, and none ends within minutes beyond T = 100.
    at_level_4 = METHODS[:2] if end <= ENDS[0] else ()
    for method in at_level_4 if order == 4 else METHODS:
        solved = scipy_solve(dynamics, ts, method, 1e-7)
        row = row_of(case, f"SciPy {method}", 1e-7, solved, reference)
        least = at_error(row["error"], points)
        yield {**row, "time / DenseExponential": row["time (s)"] / least}


def row_of(case, name, tolerance, solved, reference) -> Row:
    evaluations, train, seconds = solved
    return {
        "case": f"{case}: {name}, {tolerance:.0e}",
        "evaluations": evaluations,
        "error": float(np.abs(train - reference).max()),
        "time (s)": seconds,
    }


def measure(small: bool) -> list[Row]:
    width, cases = (16, ((8, 2), (6, 4))) if small else (512, CASES)
    rows: list[Row] = []
    for n, order in cases:
        ends = (1e2, 1e4) if (n, order) == (256, 3) else ENDS  # valid until 1.5e4
        for end in ENDS[:1] if small else ends:
            rows += compare(n, order, end, width, 3 if small else 16)
    return rows
