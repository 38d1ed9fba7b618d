"""Kernels of a fully connected network, against plain JAX and the peak of the machine.

    python -m benchmarks kernels

In float64, for two hidden layers and inputs of size 64: the time of K⁽³⁾ and
K⁽⁴⁾ at large sizes, with the peak memory of the process; of K⁽²⁾ and K⁽³⁾ relative to
their baselines; and of kernels along eight modes of the NTK. Each is shown with the
time of its multiplications at the rate of matrix products, measured in the same run.
Baselines are plain JAX: contraction of the Jacobian's rows, and its forward-mode
derivative. Times are the minimum of several, after compilation, with arrays as
arguments.
"""

import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import nth

from .matrix_free import network_of, problem_of
from .record import Row

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


def rate(n):
    """Multiplications and additions per second in a product of n × n matrices."""
    a = jnp.ones((n, n))
    return 2 * n**3 / seconds(jnp.matmul, a, a)[0]


def operations(order, n, width):
    """The operations of the algorithm, all in products of matrices."""
    points = 4 * n * (D * width + width**2)  # one forward and one backward pass
    kernel = {2: 2 * n**2 * (D + 4 * width)}
    kernel[3] = 4 * n**2 * width**2 + 8 * n**3 * width
    kernel[4] = 4 * n**2 * width**2 + 12 * n**4 * width
    return points + kernel[order]


def against_plain_jax(order, n, width, baseline, throughput):
    problem, network = problem_of(n, jnp.float64), network_of(width, jnp.float64)
    plain, _ = seconds(baseline, network, problem.x_train, repeats=2)
    times, _ = seconds(formed(order), network, problem)
    least = operations(order, n, width) / throughput
    difference = formed(order)(network, problem) - baseline(network, problem.x_train)
    return {
        "case": f"K({order}), n = {n}, width {width}",
        "nth (s)": times,
        "plain JAX (s)": plain,
        "plain JAX / nth": plain / times,
        "nth / its products": times / least,
        "largest difference": float(jnp.max(jnp.abs(difference))),
    }


def alone(order, n, width, throughput):
    problem, network = problem_of(n, jnp.float64), network_of(width, jnp.float64)

    def run():
        return nth.kernels(network, problem, order=order, progress=False)

    times = eager_seconds(run)
    return {
        "case": f"K({order}), n = {n}, width {width}",
        "nth (s)": times,
        "nth / its products": times * throughput / operations(order, n, width),
        "peak of the process (GiB)": peak(),
    }


def projected(order, n, width, q):
    problem, network = problem_of(n, jnp.float64), network_of(width, jnp.float64)
    times = eager_seconds(lambda: nth.project(network, problem, q, order=order).tensors)
    return {
        "case": f"K({order}) along {q} modes, n = {n}, width {width}",
        "nth (s)": times,
        "peak of the process (GiB)": peak(),
    }


def eager_seconds(function):
    """The time of a second call: the first one compiles."""
    jax.block_until_ready(function())
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(small: bool) -> list[Row]:
    wide, narrow = (32, 16) if small else (512, 256)
    throughput = rate(256 if small else 2048)
    return [
        alone(3, 16 if small else 256, wide, throughput),
        alone(4, 8 if small else 48, narrow, throughput),
        against_plain_jax(
            2, 16 if small else 128, wide, jacobian_contraction, throughput
        ),
        against_plain_jax(
            3, 8 if small else 64, wide, derivative_of_contraction, throughput
        ),
        *(projected(r, 32 if small else 1000, wide, 2 if small else 8) for r in (3, 4)),
        {"case": "matrix products", "throughput (GFlop/s)": throughput / 1e9},
    ]
