"""Levels under Optax optimizers: convergence of the series, and critical rates."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth

LABELS = make_problem(4, 1, outputs=2, loss=nth.SoftmaxCrossEntropy())
PAIR = make_network(2, 1, outputs=2)
SCALAR, NETWORK = make_problem(4, 1), make_network(5, 1)


def decayed(weight_decay: float, *args: Any, **options: Any) -> Any:
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(*args, **options)
    )


# These tests compare exact quantities, in networks too narrow for accurate levels.
narrow = pytest.mark.filterwarnings("ignore:the level-")


def sizes(solution: nth.Solution) -> list[float]:
    return [
        float(jnp.linalg.norm(ravel_pytree(step)[0])) for step in solution.state.steps
    ]


def test_a_series_that_does_not_converge_is_reported():
    """Where a gradient crosses zero, the series of the root of its square diverges."""
    network = make_network(8, 2, outputs=2)
    crossing, smooth = optax.adam(1e-2), optax.adam(1e-2, eps_root=1e-4)
    with pytest.warns(nth.WindowWarning, match="its series does not converge"):
        solution = nth.solve_discrete(network, LABELS, 12, crossing, order=4)
    assert 1 < solution.valid_until < 12
    grown = sizes(solution)
    assert grown[2] > grown[1]
    truth = nth.train(network, LABELS, 12, crossing).train
    lower = nth.solve_discrete(network, LABELS, 12, crossing, order=2).train
    error, other = (np.max(np.abs(f - truth)) for f in (solution.train, lower))
    assert error > other / 3  # not much better than level 2
    # With eps inside the root the series converges, without a warning.
    solution = nth.solve_discrete(network, LABELS, 12, smooth, order=4)
    assert np.isinf(solution.valid_until)
    first, second, third = sizes(solution)
    assert third < second / 2 < first / 4
    truth = nth.train(network, LABELS, 12, smooth).train
    lower = nth.solve_discrete(network, LABELS, 12, smooth, order=2).train
    error, other = (np.max(np.abs(f - truth)) for f in (solution.train, lower))
    assert error < other / 3


def test_a_root_without_an_expansion_is_reported():
    """Before a layer initialized at zero, gradients are zero at the first step only."""
    network = make_network(4, 1, outputs=2)
    zero = eqx.tree_at(lambda net: net.weights[-1], network, replace_fn=jnp.zeros_like)
    with pytest.warns(nth.WindowWarning, match="left its window at step 2"):
        solution = nth.solve_discrete(zero, LABELS, 3, optax.adam(1e-2), order=4)
    assert np.all(np.isnan(solution.train[2:]))
    assert solution.result == nth.RESULTS.diverged


@narrow
def test_steps_beyond_the_critical_rate_are_reported():
    """With momentum and a schedule; no warning below the critical rate."""
    critical = nth.max_learning_rate(NETWORK, SCALAR, optax.sgd(1.0, momentum=0.5))

    def solve(fraction: Any) -> Any:
        rising = optax.linear_schedule(0.1 * critical, fraction * critical, 4)
        optimizer = optax.sgd(rising, momentum=0.5)
        nth.solve_discrete(NETWORK, SCALAR, [6], optimizer, order=2)

    with pytest.warns(nth.WindowWarning, match="beyond the critical one"):
        solve(1.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "optimizer")
        warnings.filterwarnings("ignore", "the level-2")
        solve(0.95)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.sgd(0.5), 4.0),
        (optax.sgd(0.01, momentum=0.6), 320.0),
        (optax.sgd(1.0, momentum=0.6, nesterov=True), 3.2 / 2.2),
        # v ← μ v + (1 − μ) g: that of momentum over 1 − μ
        (optax.chain(optax.ema(0.6, debias=False), optax.scale(-1.0)), 8.0),
    ],
)
def test_critical_factor_of_linear_optimizers(optimizer, expected):
    kappa = 2 / nth.max_learning_rate(PAIR, LABELS)
    actual = nth.max_learning_rate(PAIR, LABELS, optimizer)
    np.testing.assert_allclose(actual * kappa, expected, rtol=1e-9)


def test_critical_factor_with_decay_and_learning_rates():
    """The largest eigenvalue of the matrix √M (Jᵀ H J + λ) √M."""
    x, (n, decay) = LABELS.x_train, (4, 0.3)
    theta, unravel = ravel_pytree(PAIR)
    rates = jax.tree.map(lambda _: 1.0, PAIR)
    rates = eqx.tree_at(lambda net: net.weights[0], rates, 0.2)
    roots = np.sqrt(
        ravel_pytree(jax.tree.map(lambda r, p: r * jnp.ones_like(p), rates, PAIR))[0]
    )

    def outputs(theta: Any) -> Any:
        return jax.vmap(unravel(theta))(x)

    def loss(outputs: Any) -> Any:
        return LABELS.loss(outputs.reshape(n, 2), LABELS.y_train)

    @jax.jit
    def hessian(theta: Any) -> Any:
        jacobian = jax.jacrev(outputs)(theta).reshape(2 * n, -1)
        curvature = jax.hessian(loss)(outputs(theta).ravel())
        return jacobian.T @ curvature @ jacobian

    matrix = np.asarray(hessian(theta)) + decay * np.eye(theta.size)
    matrix = roots[:, None] * matrix * roots[None]
    expected = 2 * 1.5 / np.linalg.eigvalsh(matrix).max()
    actual = nth.max_learning_rate(
        PAIR, LABELS, decayed(decay, 1.0, momentum=0.5), learning_rates=rates
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
