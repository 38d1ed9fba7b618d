"""Kernels of a fully connected network, against plain JAX and the peak of the machine.

    python benchmarks/kernels.py [--small]

Prints, in float64, for two hidden layers and inputs of size 64: the time of K⁽³⁾ and
K⁽⁴⁾ at large sizes, with the peak memory of the process; of K⁽²⁾ and K⁽³⁾ relative to
their baselines; and of kernels along eight modes of the NTK. Each is shown with the
time of its multiplications at the rate of matrix products, measured in the same run.
Baselines are plain JAX: contraction of the Jacobian's rows, and its forward-mode
derivative. Times are the minimum of several, after compilation, with arrays as
arguments.
"""

import resource
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from matrix_free import network_of, problem_of

import nth

jax.config.update("jax_enable_x64", True)

SMALL = "--small" in sys.argv
D = 64


def jacobian_contraction(network, x):
    """J Jᵀ, from separate gradients."""
    gradient = jax.vmap(lambda x: ravel_pytree(eqx.filter_grad(_value)(network, x))[0])
    jacobian = gradient(x)
    return jacobian @ jacobian.T


def derivative_of_contraction(network, x):
    """The derivative of J Jᵀ along each row of J."""
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def ntk(params):
        return jacobian_contraction(eqx.combine(params, static), x)

    def along(x_c):
        direction = jax.grad(lambda p: _value(eqx.combine(p, static), x_c))(params)
        return jax.jvp(ntk, (params,), (direction,))[1]

    return jnp.moveaxis(jax.lax.map(along, x), 0, -1)


def _value(network, x):
    return network(x)


def seconds(function, *arguments, repeats=3):
    """(minimum time of a call, time of the first call, which compiles)."""
    compiled = eqx.filter_jit(function)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times[1:]), times[0]


def formed(order):
    return lambda network, problem: nth.kernels(network, problem, order=order)[order]


def rate():
    """Multiplications and additions per second in a product of matrices."""
    n = 256 if SMALL else 2048
    a = jnp.ones((n, n))
    return 2 * n**3 / seconds(jnp.matmul, a, a)[0]


def operations(order, n, width):
    """The operations of the algorithm, all in products of matrices."""
    points = 4 * n * (D * width + width**2)  # one forward and one backward pass
    kernel = {2: 2 * n**2 * (D + 4 * width)}
    kernel[3] = 4 * n**2 * width**2 + 8 * n**3 * width
    kernel[4] = 4 * n**2 * width**2 + 12 * n**4 * width
    return points + kernel[order]


def against_plain_jax(order, n, width, baseline, bar):
    problem, network = problem_of(n, jnp.float64), network_of(width, jnp.float64)
    plain, _ = seconds(baseline, network, problem.x_train, repeats=2)
    times, first = seconds(formed(order), network, problem)
    least = operations(order, n, width) / rate()
    difference = formed(order)(network, problem) - baseline(network, problem.x_train)
    print(
        f"K({order}), n = {n}, width {width}: {times:.4f} s (first {first:.1f} s); "
        f"plain JAX {plain:.3f} s, {plain / times:.0f} times as long (bar {bar}); "
        f"its multiplications {least:.4f} s, over it {times / least:.1f}; largest "
        f"difference {jnp.max(jnp.abs(difference)):.0e}",
        flush=True,
    )


def alone(order, n, width, bar):
    problem, network = problem_of(n, jnp.float64), network_of(width, jnp.float64)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(
            nth.kernels(network, problem, order=order, progress=False)
        )
        times.append(time.perf_counter() - start)
    least = operations(order, n, width) / rate()
    print(
        f"K({order}), n = {n}, width {width}: {times[1]:.2f} s (first call "
        f"{times[0]:.1f} s; bar {bar} s); its multiplications {least:.2f} s, over it "
        f"{times[1] / least:.1f}; peak of the process {peak():.2f} GiB",
        flush=True,
    )


def projected(n, width, q):
    problem, network = problem_of(n, jnp.float64), network_of(width, jnp.float64)
    for order in (3, 4):
        times = []
        for _ in range(2):
            start = time.perf_counter()
            jax.block_until_ready(nth.project(network, problem, q, order=order).tensors)
            times.append(time.perf_counter() - start)
        print(
            f"K({order}) along {q} modes, n = {n}, width {width}: {times[1]:.1f} s "
            f"(first call {times[0]:.1f} s); peak of the process {peak():.2f} GiB",
            flush=True,
        )


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(f"float64, matrix products at {rate() / 1e9:.0f} GFlop/s")
    wide, narrow = (32, 16) if SMALL else (512, 256)
    alone(3, 16 if SMALL else 256, wide, 30)
    alone(4, 8 if SMALL else 48, narrow, 30)
    against_plain_jax(2, 16 if SMALL else 128, wide, jacobian_contraction, 100)
    against_plain_jax(3, 8 if SMALL else 64, wide, derivative_of_contraction, 100)
    projected(32 if SMALL else 1000, wide, 2 if SMALL else 8)
