"""Does `nth.cheaper_method` choose the faster form?

    python -m benchmarks cheaper_method

For several networks, numbers of points and levels, the CPU time of a whole solve
(kernels formed, then integrated) in both forms, after compilation, and which one
`method="auto"` chooses. Fully connected networks are trained to t = 50, others to 20
times the shortest time scale of the NTK. The last column is the ratio of the chosen
form's time to the faster form's.
"""

import time

import jax
import jax.numpy as jnp

import nth

from .against_neural_tangents import NETWORKS, inputs
from .matrix_free import network_of, problem_of
from .record import Row

CASES = (
    *((8, 2), (256, 2), (1024, 2)),
    *((8, 3), (64, 3), (192, 3), (320, 3)),
    *((8, 4), (24, 4), (40, 4), (56, 4)),
)
# Networks that use weights at many positions.
SHARED = (
    *(("convolutional", 64, 2), ("convolutional", 32, 3)),
    *(("attention", 64, 2), ("attention", 32, 3), ("attention", 96, 3)),
)


def seconds(network, problem, ts, order, method):
    times = []
    for _ in range(2):  # the first compiles
        start = time.process_time()
        solution = nth.solve(
            network, problem, ts, order=order, method=method, progress=False
        )
        jax.block_until_ready(solution.train)
        times.append(time.process_time() - start)
    return min(times)


def measure(small: bool) -> list[Row]:
    width, cases = (16, CASES[:1]) if small else (256, CASES)
    network = network_of(width, jnp.float64)
    rows = [
        row(f"width {width}", network, problem_of(n, jnp.float64), [50.0], order)
        for n, order in cases
    ]
    return rows if small else [*rows, *(row_of(*case) for case in SHARED)]


def row_of(name, n, order):
    """A network of `benchmarks/against_neural_tangents.py`."""
    case = {"network": name, "outputs": 1, "n": n, "dtype": "float64"}
    params, x = inputs(case)
    y = jnp.sign(jax.random.normal(jax.random.key(1), (n, 1)))
    network, problem = nth.from_apply(NETWORKS[name][0], params), nth.Problem(x, y)
    spectrum = nth.spectrum(nth.kernels(network, problem, order=2))
    return row(name, network, problem, 20 * spectrum.time_scales[:1], order)


def row(name, network, problem, ts, order):
    dense, free = (
        seconds(network, problem, ts, order, method)
        for method in ("dense", "matrix-free")
    )
    chosen = nth.cheaper_method(network, problem, ts, order=order)
    return {
        "case": f"n = {problem.n_train}, p = {order}, {name}",
        "dense, CPU time (s)": dense,
        "matrix-free, CPU time (s)": free,
        "chosen": chosen,
        "chosen / faster": (dense if chosen == "dense" else free) / min(dense, free),
    }
