"""The number of expansions that a training run needs: restarts by width and level.

    python benchmarks/restarts.py [widths]    # 16,32,64,128,256: about 10 minutes

24 + 24 digits, odd against even, two hidden layers, tanh, to t = 150,
`until_error` 1e-2 and 1e-3. Prints the number of restarts, the largest error against
the trained network and the last estimate; writes restarts.png.
"""

import sys

import jax
import numpy as np
from sklearn.datasets import load_digits

import nth

jax.config.update("jax_enable_x64", True)

N, LIMITS, ORDERS = 24, (1e-2, 1e-3), (2, 3, 4)
TS = np.geomspace(0.15, 150, 16)


def digits():
    images, numbers = map(np.asarray, load_digits(return_X_y=True))
    chosen = np.random.default_rng(0).permutation(len(images))[: 2 * N]
    x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
    return nth.Problem(x[:N], np.where(numbers[chosen[:N]] % 2, 1.0, -1.0), x[N:])


def main(widths):
    problem = digits()
    counts: dict[tuple[float, int], list[int]] = {}
    for width in widths:
        network = nth.MLP(64, width, 2, key=jax.random.key(0))
        truth = nth.gradient_flow(network, problem, TS)
        for p in ORDERS:
            for limit in LIMITS:
                solution = nth.solve(
                    network, problem, TS, order=p, until_error=limit, restart=True
                )
                assert solution.restarts is not None
                difference = np.concatenate(
                    [solution.train - truth.train, solution.test - truth.test], axis=1
                )
                error = np.sqrt(np.mean(difference**2, axis=1)).max()
                counts.setdefault((limit, p), []).append(len(solution.restarts))
                print(
                    f"width {width}, p = {p}, until_error {limit:g}: "
                    f"{len(solution.restarts)} restarts, largest error {error:.1e}, "
                    f"last estimate {solution.error_estimate[-1]:.1e}",
                    flush=True,
                )
    plot(widths, counts)


def plot(widths, counts):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3), layout="constrained")
    colors = dict(zip(ORDERS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    for axis, limit in zip(axes, LIMITS, strict=True):
        for p in ORDERS:
            numbers = np.array(counts[limit, p]) + 1
            axis.plot(widths, numbers, "o-", color=colors[p], label=f"$p = {p}$", ms=4)
        axis.set(xscale="log", yscale="log", xlabel="width")
        axis.set_xticks(widths, map(str, widths))
        axis.minorticks_off()
        axis.set_title(f"estimated error below {limit:g}")
    axes[0].set_ylabel("expansions to $t = 150$")
    axes[1].legend(frameon=False)
    figure.savefig("restarts.png", dpi=150)


if __name__ == "__main__":
    main([int(w) for w in (sys.argv[1:] or ["16,32,64,128,256"])[0].split(",")])
