"""Three handwritten digits, softmax cross-entropy: levels 2, 3, 4 and trained network.

    python examples/digits.py            # about a minute on 2 cores
    python examples/digits.py --small    # seconds: what the checks run

Prints a table and writes digits.png.
"""

import sys

import jax
import numpy as np
from sklearn.datasets import load_digits

import nth

jax.config.update("jax_enable_x64", True)

small = "--small" in sys.argv
n, q, width, orders = (3, 3, 16, (2, 3)) if small else (12, 30, 128, (2, 3, 4))

images, labels = map(np.asarray, load_digits(n_class=3, return_X_y=True))
chosen = np.random.default_rng(0).permutation(len(images))[: n + q]
x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
y = labels[chosen]

problem = nth.Problem(x[:n], y[:n], x[n:], loss=nth.SoftmaxCrossEntropy())
network = nth.MLP(64, width, 2, out_size=3, key=jax.random.key(0))
ts = np.concatenate([[0.0], np.geomspace(0.1, 100.0, 31)])

comparison = nth.compare(network, problem, ts, orders, y_test=y[n:])
print(comparison)
comparison.plot().savefig("digits.png")
