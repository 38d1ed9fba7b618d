"""Time of an evaluation of the matrix-free hierarchy, relative to a loss gradient.

    python -m benchmarks matrix_free

In float64 and float32, for two hidden layers: the ratio at n = 1024, width 512, for
p = 2 … 5, with the count of matrix products; the time per point from n = 256 to 10,000,
with the peak memory; and the time of a solve, in float32, to half the loss. The
baseline is `jax.grad` of the same loss at
the same points, in the same run, timed before and after. Times are the minimum of
several, after compilation, with arrays as arguments.
"""

import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp

import nth

from .record import Row


def problem_of(n, dtype, d=64):
    x_key, y_key = jax.random.split(jax.random.key(1))
    x = jax.random.normal(x_key, (n, d), dtype)
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return nth.Problem(x, jnp.sign(jax.random.normal(y_key, (n,), dtype)))


def network_of(width, dtype, d=64):
    return nth.MLP(d, width, 2, dtype=dtype, key=jax.random.key(0))


def seconds(function, *arguments, repeats=7):
    compiled = eqx.filter_jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def loss_gradient(network, problem):
    def loss(network):
        return problem.loss(jax.vmap(network)(problem.x_train), problem.y_train)

    return eqx.filter_grad(loss)(network)


def evaluation(hierarchy, state):
    return hierarchy.vector_field(jnp.zeros(()), state, None)


def random_state(hierarchy):
    """A state whose coefficients are all nonzero."""
    leaves, tree = jax.tree.flatten(hierarchy.initial_state())
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [
        0.01 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def seconds_of_evaluation(network, problem, order):
    hierarchy = nth.MatrixFreeHierarchy(network, problem, order=order)
    return seconds(evaluation, hierarchy, random_state(hierarchy))


def ratios(dtype, n, width):
    """The time of an evaluation over that of a gradient, with the count."""
    network, problem = network_of(width, dtype), problem_of(n, dtype)
    for p in (2, 3, 4, 5):
        before = seconds(loss_gradient, network, problem)
        evaluation_time = seconds_of_evaluation(network, problem, p)
        after = seconds(loss_gradient, network, problem)
        gradient = (before + after) / 2
        yield {
            "case": f"{dtype.__name__}, n = {n}, width {width}, p = {p}",
            "evaluation (s)": evaluation_time,
            "gradient (s)": gradient,
            "evaluation / gradient": evaluation_time / gradient,
            "matrix products / gradient": (3 * p**2 - p - 2) / 6,
        }


def growth(dtype, sizes, width):
    network = network_of(width, dtype)
    for n in sizes:
        least = seconds_of_evaluation(network, problem_of(n, dtype), 4)
        yield {
            "case": f"{dtype.__name__}, n = {n}, width {width}, p = 4",
            "evaluation (s)": least,
            "per point (ms)": least / n * 1e3,
            "peak of the process (GiB)": peak(),
        }


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def half_the_loss(n, width, last):
    """Targets tanh(w·x), p = 4; gradient flow halves the loss by t = 40."""
    dtype = jnp.float32
    x = problem_of(n, dtype).x_train
    w = jax.random.normal(jax.random.key(5), x.shape[1:], dtype)
    problem = nth.Problem(x, jnp.tanh(x @ w))
    network = network_of(width, dtype)
    start = time.perf_counter()
    solution = nth.solve(network, problem, [0.0, last], order=4, progress=False)
    loss = jax.block_until_ready(solution.loss)
    return {
        "case": f"solve, float32, n = {n}, width {width}, p = 4, to t = {last:g}",
        "solve, compiled in it (s)": time.perf_counter() - start,
        "evaluations": int(solution.stats["num_evaluations"]),
        "loss at the end / at t = 0": float(loss[1] / loss[0]),
    }


def measure(small: bool) -> list[Row]:
    n, width = (64, 32) if small else (1024, 512)
    sizes = (64, 128) if small else (256, 1024, 4096, 10_000)
    rows: list[Row] = []
    for dtype in (jnp.float64, jnp.float32):
        rows += [*ratios(dtype, n, width), *growth(dtype, sizes, width)]
    return [*rows, half_the_loss(*((500, 32, 4.0) if small else (10_000, 512, 40.0)))]
