"""Does `nth.cheaper_method` choose the faster form?

    python benchmarks/cheaper_method.py [--small]

For several numbers of points and levels, the time of a whole solve (kernels formed,
then integrated to t = 50) in both forms, after compilation, and which one
`method="auto"` chooses. The last column is the ratio of its time to the faster form's.
"""

import sys
import time

import jax
import jax.numpy as jnp
from matrix_free import network_of, problem_of

import nth

SMALL = "--small" in sys.argv
CASES = (
    *((8, 2), (256, 2), (1024, 2)),
    *((8, 3), (64, 3), (192, 3), (320, 3)),
    *((8, 4), (24, 4), (40, 4), (56, 4)),
)


def seconds(network, problem, order, method):
    times = []
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        solution = nth.solve(network, problem, [50.0], order=order, method=method)
        jax.block_until_ready(solution.train)
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    width, cases = (16, CASES[:1]) if SMALL else (256, CASES)
    network = network_of(width, jnp.float64)
    print("    n  p    dense  matrix-free  auto           time over the faster")
    for n, order in cases:
        problem = problem_of(n, jnp.float64)
        both = {
            method: seconds(network, problem, order, method)
            for method in ("dense", "matrix-free")
        }
        chosen = nth.cheaper_method(network, problem, order=order)
        dense, free = both["dense"], both["matrix-free"]
        print(
            f"{n:5d}  {order}  {dense:5.2f} s      {free:5.2f} s  {chosen:13s}  "
            f"{both[chosen] / min(dense, free):.2f}"
        )


if __name__ == "__main__":
    main()
