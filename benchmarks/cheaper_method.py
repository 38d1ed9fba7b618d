"""Does `nth.cheaper_method` choose the faster form?

    python -m benchmarks cheaper_method

For several numbers of points and levels, the time of a whole solve (kernels formed,
then integrated to t = 50) in both forms, after compilation, and which one
`method="auto"` chooses. The last column is the ratio of its time to the faster form's.
"""

import time

import jax
import jax.numpy as jnp

import nth

from .matrix_free import network_of, problem_of
from .record import Row

CASES = (
    *((8, 2), (256, 2), (1024, 2)),
    *((8, 3), (64, 3), (192, 3), (320, 3)),
    *((8, 4), (24, 4), (40, 4), (56, 4)),
)


def seconds(network, problem, order, method):
    times = []
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        solution = nth.solve(
            network, problem, [50.0], order=order, method=method, progress=False
        )
        jax.block_until_ready(solution.train)
        times.append(time.perf_counter() - start)
    return min(times)


def measure(small: bool) -> list[Row]:
    width, cases = (16, CASES[:1]) if small else (256, CASES)
    network = network_of(width, jnp.float64)
    return [row(network, n, order, width) for n, order in cases]


def row(network, n, order, width):
    problem = problem_of(n, jnp.float64)
    dense, free = (
        seconds(network, problem, order, method) for method in ("dense", "matrix-free")
    )
    chosen = nth.cheaper_method(network, problem, order=order)
    return {
        "case": f"n = {n}, p = {order}, width {width}",
        "dense (s)": dense,
        "matrix-free (s)": free,
        "chosen": chosen,
        "chosen / faster": (dense if chosen == "dense" else free) / min(dense, free),
    }
