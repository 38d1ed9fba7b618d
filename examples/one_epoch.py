"""One epoch of mini-batches on all digits: levels p = 2, 3, 4 and the network.

    python examples/one_epoch.py            # about a minute on 2 cores
    python examples/one_epoch.py --small    # seconds: what the checks run

1,500 training and 297 test digits, ten classes, softmax cross-entropy, width 256, in
float32; batches of 64, the same for the network and for every level. Prints errors and
accuracy, and writes one_epoch.png.
"""

import sys

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import nth

small = "--small" in sys.argv
n, q, width, orders = (40, 20, 16, (2, 3)) if small else (1500, 297, 256, (2, 3, 4))
batch_size = 8 if small else 64

images, labels = map(np.asarray, load_digits(return_X_y=True))
chosen = np.random.default_rng(0).permutation(len(images))[: n + q]
x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
x, y = x.astype(np.float32), labels[chosen]

problem = nth.Problem(x[:n], y[:n], x[n:], loss=nth.SoftmaxCrossEntropy())
network = nth.MLP(64, width, 2, out_size=10, key=jax.random.key(0))
comparison = nth.compare_discrete(
    network,
    problem,
    n // batch_size,
    optax.sgd(8.0),
    orders,
    y_test=y[n:],
    batch_size=batch_size,
    key=jax.random.key(1),
)
print(comparison)
for p in orders:
    scores = [comparison.accuracy(model) for model in (p, "truth")]
    wrong = np.subtract(*map(np.asarray, scores))
    print(
        f"p = {p}: test accuracy at most {100 * np.max(np.abs(wrong)):.1f} points from "
        "the network's, at any step"
    )
comparison.plot().savefig("one_epoch.png")
