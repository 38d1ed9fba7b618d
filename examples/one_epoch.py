"""One epoch of mini-batches on all digits, by SGD and by Adam: levels and network.

    python examples/one_epoch.py            # minutes on 2 cores
    python examples/one_epoch.py --small    # seconds: what the checks run

1,500 training and 297 test digits, ten classes, softmax cross-entropy, width 256, in
float32; batches of 64, the same for the network and for every level. SGD at p = 2, 3
and 4; Adam, whose series does not converge at higher levels, at p = 2 and 3. Prints
errors and accuracy, and writes one_epoch.png, with one column for each optimizer.
"""

import sys

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import nth

small = "--small" in sys.argv
n, q, width = (40, 20, 16) if small else (1500, 297, 256)
batch_size = 8 if small else 64
OPTIMIZERS = {
    "SGD": (optax.sgd(8.0), (2, 3) if small else (2, 3, 4)),
    "Adam": (optax.adam(8e-3), (2,) if small else (2, 3)),
}

images, labels = map(np.asarray, load_digits(return_X_y=True))
chosen = np.random.default_rng(0).permutation(len(images))[: n + q]
x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
x, y = x.astype(np.float32), labels[chosen]

problem = nth.Problem(x[:n], y[:n], x[n:], loss=nth.SoftmaxCrossEntropy())
network = nth.MLP(64, width, 2, out_size=10, key=jax.random.key(0))

with nth.plot.style():
    figure = Figure(figsize=(7, 9), layout="constrained", dpi=150)
    columns = figure.subplots(4, len(OPTIMIZERS)).T
    runs = zip(OPTIMIZERS.items(), columns, strict=True)
    for (name, (optimizer, orders)), axes in runs:
        comparison = nth.compare_discrete(
            network,
            problem,
            n // batch_size,
            optimizer,
            orders,
            y_test=y[n:],
            batch_size=batch_size,
            key=jax.random.key(1),
        )
        print(f"{name}\n{comparison}")
        for p in orders:
            scores = [comparison.accuracy(model) for model in (p, "truth")]
            wrong = np.abs(np.subtract(*map(np.asarray, scores)))
            print(
                f"p = {p}: test accuracy at most {100 * np.max(wrong):.1f} points from "
                f"the network's at any step, {100 * wrong[-1]:.1f} at the last"
            )
        comparison.plot(axes)
        axes[0].set_title(name)
    figure.savefig("one_epoch.png")
