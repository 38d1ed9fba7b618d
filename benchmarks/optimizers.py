"""Errors of levels for adaptive optimizers, by the inputs, and sizes of their series.

    python -m benchmarks optimizers

Softmax cross-entropy with 3 outputs, tanh, two hidden layers of width 256, 6 training
and 4 test points, 20 steps, float64. The largest error of each level over steps, points
and outputs, as the median over draws of points and network; and the norms of the
coefficients u_k of the parameters after the last step, for one draw in ten dimensions.
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
ADAPTIVE = {
    "rmsprop(1e-2, eps=1e-4)": optax.rmsprop(1e-2, eps=1e-4),
    "adam(2e-3, eps=1e-4)": optax.adam(2e-3, eps=1e-4),
    "adam(2e-3)": optax.adam(2e-3),
}
SERIES = {
    "sgd(0.5)": optax.sgd(0.5),
    **ADAPTIVE,
    "adam(2e-3, eps_root=1e-6)": optax.adam(2e-3, eps_root=1e-6),
}
INPUTS = {1: "one dimension", 2: "two dimensions", 10: "ten dimensions"}


def drawn(dimension: int, seed: int, width: int) -> tuple[nth.MLP, nth.Problem]:
    """Uniform in [−1, 1] in one dimension, unit vectors in others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, dimension))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    if dimension == 1:
        x = rng.uniform(-1, 1, size=(10, 1))
    network = nth.MLP(dimension, width, 2, out_size=3, key=jax.random.key(seed))
    labels = np.arange(6) % 3
    return network, nth.Problem(x[:6], labels, x[6:], loss=nth.SoftmaxCrossEntropy())


def largest_errors(
    network: nth.MLP, problem: nth.Problem, optimizer: Any, steps: int
) -> list[float]:
    found = nth.compare_discrete(
        network, problem, steps, optimizer, ORDERS, progress=False
    )
    truth = found.truth
    pairs = [found.solutions[p] for p in ORDERS]
    return [
        float(
            max(
                jnp.abs(p.train - truth.train).max(), jnp.abs(p.test - truth.test).max()
            )
        )
        for p in pairs
    ]


def errors_of(name: str, dimension: int, width: int, draws: int, steps: int) -> Row:
    errors = [
        largest_errors(*drawn(dimension, seed, width), ADAPTIVE[name], steps)
        for seed in range(draws)
    ]
    medians = np.median(errors, axis=0)
    at = {f"p = {p}": float(error) for p, error in zip(ORDERS, medians, strict=True)}
    return {"case": f"errors, {INPUTS[dimension]}, {name}", **at}


def sizes_of(name: str, width: int, steps: int) -> Row:
    """Norms of u_1 to u_4."""
    network, problem = drawn(10, 0, width)
    solution = nth.solve_discrete(
        network, problem, [steps], SERIES[name], order=5, progress=False
    )
    norms = [float(jnp.linalg.norm(ravel_pytree(u)[0])) for u in solution.state.steps]
    at = {f"u{k}": norm for k, norm in enumerate(norms, start=1)}
    return {"case": f"coefficients, {name}", **at}


def measure(small: bool) -> list[Row]:
    if small:
        return [errors_of("adam(2e-3)", 1, 8, 2, 2)]
    rows = [
        errors_of(name, dimension, 256, DRAWS, STEPS)
        for dimension in INPUTS
        for name in ADAPTIVE
    ]
    return [*rows, *(sizes_of(name, 256, STEPS) for name in SERIES)]
