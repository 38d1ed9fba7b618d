"""Time of an evaluation of the matrix-free hierarchy, relative to a loss gradient.

    python benchmarks/matrix_free.py [--small]

Prints, in float64 and float32, for two hidden layers: the ratio at n = 1024, width
512, for p = 2 … 5, with the count of matrix products; the time per point from n = 256
to 16,384; for n = 10,000, the time and the peak memory of one evaluation, and the time
of a solve, in float32, to half the loss. The baseline is `jax.grad` of the same loss at
the same points, in the same run, timed before and after. Times are the minimum of
several, after compilation, with arrays as arguments.
"""

import resource
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp

import nth

jax.config.update("jax_enable_x64", True)

SMALL = "--small" in sys.argv


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


def measure(network, problem, order):
    hierarchy = nth.MatrixFreeHierarchy(network, problem, order=order)
    return seconds(evaluation, hierarchy, random_state(hierarchy))


def ratios(dtype):
    n, width = (64, 32) if SMALL else (1024, 512)
    network, problem = network_of(width, dtype), problem_of(n, dtype)
    base = seconds(loss_gradient, network, problem)
    print(f"\n{dtype.__name__}, n = {n}, width {width}: gradient {base:.4f} s")
    print("  p   ratio   matrix products   bar")
    for p, bar in ((2, 2), (3, 4.5), (4, 8), (5, 13)):
        count = (3 * p**2 - p - 2) / 6
        evaluation_time = measure(network, problem, p)
        base_after = seconds(loss_gradient, network, problem)
        ratio = evaluation_time / ((base + base_after) / 2)
        print(f"  {p}  {ratio:6.2f}   {count:15.2f}  {bar:4}")


def growth(dtype):
    sizes, width = ((64, 128), 32) if SMALL else ((256, 1024, 4096, 16384), 512)
    network = network_of(width, dtype)
    print(f"\n{dtype.__name__}, width {width}, p = 4: milliseconds per point")
    for n in sizes:
        per_point = measure(network, problem_of(n, dtype), 4) / n * 1e3
        print(f"  n = {n:6d}   {per_point:.4f}")


def large(dtype):
    n, width = (500, 32) if SMALL else (10_000, 512)
    evaluation_time = measure(network_of(width, dtype), problem_of(n, dtype), 4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{dtype.__name__}, n = {n}, width {width}, p = 4: {evaluation_time:.2f} s "
        f"for one evaluation; peak of the whole run so far {peak:.2f} GiB"
    )


def half_the_loss():
    """Targets tanh(w·x), p = 4; gradient flow halves the loss by t = 40."""
    dtype = jnp.float32
    n, width, last = (500, 32, 4.0) if SMALL else (10_000, 512, 40.0)
    x = problem_of(n, dtype).x_train
    w = jax.random.normal(jax.random.key(5), x.shape[1:], dtype)
    problem = nth.Problem(x, jnp.tanh(x @ w))
    start = time.perf_counter()
    solution = nth.solve(network_of(width, dtype), problem, [0.0, last], order=4)
    loss = jax.block_until_ready(solution.loss)
    print(
        f"\n{dtype.__name__}, n = {n}, width {width}, p = 4, to t = {last:g}: loss "
        f"{loss[0]:.3f} to {loss[1]:.3f} in {time.perf_counter() - start:.0f} s, "
        f"{solution.stats['num_evaluations']} evaluations, compilation included"
    )


if __name__ == "__main__":
    for dtype in (jnp.float64, jnp.float32):
        large(dtype)
        ratios(dtype)
        growth(dtype)
    half_the_loss()
