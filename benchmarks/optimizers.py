"""Errors of levels for several optimizers, by the inputs, and sizes of their series.

    python -m benchmarks optimizers

Softmax cross-entropy with 3 outputs, tanh, two hidden layers of width 256, 6 training
and 4 test points, 20 steps, float64. The largest error of each level over steps, points
and outputs, as the median over draws of points and network; and the norms of the
coefficients u_k of the parameters after the last step, for the first draw.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import nth

from .record import Row

ORDERS, STEPS, DRAWS = (2, 3, 4), 20, 8
OPTIMIZERS = {
    "sgd(0.5)": optax.sgd(0.5),
    "rmsprop(1e-2, eps=1e-4)": optax.rmsprop(1e-2, eps=1e-4),
    "adam(2e-3, eps=1e-4)": optax.adam(2e-3, eps=1e-4),
    "adam(2e-3)": optax.adam(2e-3),
    "adam(2e-3, eps_root=1e-6)": optax.adam(2e-3, eps_root=1e-6),
}


def drawn(dimension: int, seed: int, width: int) -> tuple[nth.MLP, nth.Problem]:
    """Points are uniform in [−1, 1] in one dimension, else unit vectors."""
    rng = np.random.default_rng(seed)
    if dimension == 1:
        x = rng.uniform(-1, 1, size=(10, 1))
    else:
        x = rng.normal(size=(10, dimension))
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    network = nth.MLP(dimension, width, 2, out_size=3, key=jax.random.key(seed))
    loss = nth.SoftmaxCrossEntropy()
    return network, nth.Problem(x[:6], np.arange(6) % 3, x[6:], loss=loss)


def row_of(name: str, dimension: int, width: int, draws: int, steps: int) -> Row:
    runs = [
        nth.compare_discrete(
            *drawn(dimension, seed, width),
            steps,
            OPTIMIZERS[name],
            ORDERS,
            progress=False,
        )
        for seed in range(draws)
    ]
    row: Row = {"case": f"{dimension}-dimensional inputs, {name}"}
    for p in ORDERS:
        errors = [largest(run.solutions[p], run.truth) for run in runs]
        row[f"p = {p}"] = float(np.median(errors))
    coefficients = runs[0].solutions[ORDERS[-1]].state.steps
    for k, u in enumerate(coefficients, start=1):
        row[f"norm of u{k}"] = float(jnp.linalg.norm(ravel_pytree(u)[0]))
    return row


def largest(level: nth.Solution, truth: Any) -> float:
    differences = [level.train - truth.train, level.test - truth.test]
    return max(float(jnp.max(jnp.abs(each))) for each in differences)


def measure(small: bool) -> list[Row]:
    if small:
        return [row_of("adam(2e-3)", 1, 8, 2, 2)]
    return [
        row_of(name, dimension, 256, DRAWS, STEPS)
        for dimension in (1, 10)
        for name in OPTIMIZERS
    ]
