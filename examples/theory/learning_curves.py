"""Learning curves of kernel regression on digits, predicted and measured.

    python examples/theory/learning_curves.py            # a minute on 2 cores
    python examples/theory/learning_curves.py --small    # seconds: what the checks run

Writes learning_curves.png.
"""

import click
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import nth

jax.config.update("jax_enable_x64", True)

COLORS = ("#0072B2", "#D55E00", "#009E73")


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of unit norm; targets ±1 for even and odd."""
    x, labels = load_digits(return_X_y=True)
    x = x[:count] - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, np.where(labels[:count] % 2 == 0, 1.0, -1.0)


def errors(
    kernel: np.ndarray, y: np.ndarray, n: int, ridge: float, draws: int
) -> np.ndarray:
    """The mean squared error over all points, for random sets of n of them."""
    rng = np.random.default_rng(n)
    found = []
    for _ in range(draws):
        chosen = rng.choice(len(y), n)
        square = kernel[np.ix_(chosen, chosen)] + ridge * np.eye(n)
        f = kernel[:, chosen] @ np.linalg.solve(square, y[chosen])
        found.append(np.mean((f - y) ** 2))
    return np.array(found)


@click.command()
@click.option("--small", is_flag=True, help="Seconds, not a minute.")
def main(small: bool) -> None:
    x, y = digits(200 if small else 1797)
    kernel = nth.infinite.kernels(jnp.asarray(x), depth=1, activation="erf").ntk
    sizes = [10, 20] if small else [10, 20, 40, 80, 160, 320]
    figure = Figure(figsize=(4.8, 3.4), layout="constrained", dpi=150)
    axis = figure.subplots()
    for ridge, color in zip((0.01, 0.1, 1.0), COLORS, strict=True):
        line = np.geomspace(sizes[0], sizes[-1], 30)
        curve = nth.infinite.learning_curve(kernel, y, line, ridge=ridge)
        axis.plot(line, curve.test_error, color=color, label=f"ridge {ridge:g}")
        at_sizes = nth.infinite.learning_curve(kernel, y, sizes, ridge=ridge)
        for n, predicted in zip(sizes, at_sizes.test_error, strict=True):
            found = errors(np.asarray(kernel), y, n, ridge, 5 if small else 30)
            error = found.std() / len(found) ** 0.5
            axis.errorbar(n, found.mean(), 2 * error, fmt="o", ms=4, color=color)
            ratio = predicted / found.mean()
            print(f"ridge {ridge:4g}, n = {n:3d}: predicted/measured {ratio:.3f}")
    axis.set(xscale="log", xlabel="training points", ylabel="test error, squared")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig("learning_curves.png")


if __name__ == "__main__":
    main()
