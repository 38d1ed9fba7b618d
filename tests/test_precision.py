"""Precision of products of float32 matrices, which GPUs and TPUs may reduce."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nth

WIDTH, D, N = 6, 3, 4
NETWORK = nth.MLP(D, WIDTH, 2, dtype=jnp.float32, key=jax.random.key(0))
X = np.random.default_rng(0).normal(size=(N + 2, D)).astype(np.float32)
PROBLEM = nth.Problem(X[:N], np.ones(N, np.float32), X[N:])

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "kernels": lambda x: nth.kernels(NETWORK, problem(x), order=3)[3],
    "infinite width": lambda x: nth.infinite.kernels(x, depth=1, activation="relu").ntk,
    "project": lambda x: nth.project(NETWORK, problem(x), 2, order=3)[3],
    "solve, dense": lambda x: solve(x, "dense"),
    "solve, matrix-free": lambda x: solve(x, "matrix-free"),
    "gradient flow": lambda x: nth.gradient_flow(NETWORK, problem(x), [1.0]).train,
    "SGD": lambda x: (
        nth.solve_discrete(NETWORK, problem(x), 2, optax.sgd(0.1), order=2).train
    ),
}


def problem(x: jax.Array) -> nth.Problem:
    return nth.Problem(x, PROBLEM.y_train, PROBLEM.x_test)


def solve(x: jax.Array, method: Any) -> jax.Array:
    return nth.solve(NETWORK, problem(x), [1.0], order=3, method=method).train


def precisions(jaxpr: Any) -> Iterator[Any]:
    """The precision of each product of float32 matrices."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for part in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(part, "eqns"):
                yield from precisions(part)
            elif hasattr(part, "jaxpr"):
                yield from precisions(part.jaxpr)


def traced_precisions(function: Callable[..., Any]) -> set[Any]:
    return set(precisions(jax.make_jaxpr(function)(jnp.asarray(X[:N])).jaxpr))


@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")  # the network is narrow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_matrix_products_have_the_precision_of_float32(name):
    highest = jax.lax.Precision.HIGHEST
    assert traced_precisions(FUNCTIONS[name]) == {(highest, highest)}


def test_a_precision_set_by_the_user_is_kept():
    with jax.default_matmul_precision("bfloat16"):
        actual = traced_precisions(FUNCTIONS["kernels"])
    assert actual == {(jax.lax.Precision.DEFAULT, jax.lax.Precision.DEFAULT)}
