"""All 1,797 handwritten digits, ten classes: levels 2, 3, 4 and trained network.

    python examples/all_digits.py            # minutes on 2 cores
    python examples/all_digits.py --small    # seconds: what the checks run

1,500 training and 297 test digits, softmax cross-entropy, width 256, in float32. The
tensor form would need 10¹⁷ numbers for K⁽⁴⁾; the matrix-free form needs three copies of
the parameters. Prints the time of each solve, errors and accuracy, and writes
all_digits.png.
"""

import sys
import time

import jax
import numpy as np
from sklearn.datasets import load_digits

import nth

small = "--small" in sys.argv
n, q, width, orders = (40, 20, 16, (2, 3)) if small else (1500, 297, 256, (2, 3, 4))
last = 1.0 if small else 400.0

images, labels = map(np.asarray, load_digits(return_X_y=True))
chosen = np.random.default_rng(0).permutation(len(images))[: n + q]
x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
x, y = x.astype(np.float32), labels[chosen]

problem = nth.Problem(x[:n], y[:n], x[n:], loss=nth.SoftmaxCrossEntropy())
network = nth.MLP(64, width, 2, out_size=10, key=jax.random.key(0))
ts = np.concatenate([[0.0], np.geomspace(last / 300, last, 25)])


def timed(name, solve):
    start = time.perf_counter()
    solution = jax.block_until_ready(solve())
    took = time.perf_counter() - start
    evaluations = int(solution.stats["num_evaluations"])
    print(
        f"{name}: {solution.stats['method']}, {evaluations} evaluations, {took:.0f} s"
    )
    return solution


truth = timed("truth", lambda: nth.gradient_flow(network, problem, ts))
solutions = {
    p: timed(f"p = {p}", lambda p=p: nth.solve(network, problem, ts, order=p))
    for p in orders
}
comparison = nth.Comparison(truth, solutions, problem, jax.numpy.asarray(y[n:]))
print(comparison)
comparison.plot().savefig("all_digits.png")
