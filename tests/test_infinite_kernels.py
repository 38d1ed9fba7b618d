"""Kernels of infinite width in other functions, and posteriors with noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_problem

import nth

PROBLEM = make_problem()
KERNELS = nth.infinite.kernels(PROBLEM.x, depth=2, activation="erf")
TS = jnp.array([0.0, 2.0, jnp.inf])
N = PROBLEM.n_train
KERNELS_PARTS = (KERNELS.nngp, KERNELS.ntk)


def test_closed_form_spectrum_and_bounds():
    """The mean of the ensemble, the eigenvalues of Θ, and the bounds from them."""
    kernels = nth.infinite.as_kernels(KERNELS, PROBLEM)
    law = nth.infinite.ensemble(KERNELS, PROBLEM, TS)
    path = nth.closed_form(kernels, PROBLEM, TS)
    both = jnp.concatenate([path.train, path.test], axis=1)
    np.testing.assert_allclose(both, law.mean, atol=1e-12)
    values = np.linalg.eigvalsh(np.asarray(KERNELS.ntk)[:N, :N])[::-1]
    np.testing.assert_allclose(nth.spectrum(kernels).eigenvalues, values, rtol=1e-10)
    bounds = nth.theory.bounds(kernels, 1000)
    np.testing.assert_allclose(bounds.smallest_eigenvalue, values[-1], rtol=1e-10)


def test_dynamics_with_another_loss_and_several_outputs():
    """Cross-entropy with two outputs: dF/dt = −Θ (softmax(F) − y)/n, one Euler step at
    a time, for outputs drawn from the Gaussian process."""
    labels = np.array([0, 1, 1, 0])
    problem = nth.Problem(
        PROBLEM.x_train, labels, PROBLEM.x_test, loss=nth.SoftmaxCrossEntropy()
    )
    root = np.linalg.cholesky(np.asarray(KERNELS.nngp))
    start = root @ np.random.default_rng(0).normal(size=(len(root), 2))
    kernels = nth.infinite.as_kernels(KERNELS, problem, outputs=start)
    path = nth.integrate(nth.DenseHierarchy(kernels, problem), jnp.array([1.0]))

    def euler(steps: int) -> np.ndarray:
        f = start
        for _ in range(steps):
            odds = np.exp(f[:N])
            gradient = odds / odds.sum(axis=1, keepdims=True) - np.eye(2)[labels]
            f = f - np.asarray(KERNELS.ntk)[:, :N] @ gradient / N / steps
        return f

    expected = 2 * euler(400) - euler(200)  # without the first order in the step
    both = np.concatenate([path.train[0], path.test[0]])
    np.testing.assert_allclose(both, expected, atol=1e-5)


def test_functions_of_kernels_take_those_of_infinite_width():
    """The same as with the kernels that `as_kernels` makes."""
    kernels = nth.infinite.as_kernels(KERNELS, PROBLEM)
    direct = nth.closed_form(KERNELS, PROBLEM, TS)
    np.testing.assert_array_equal(
        direct.test, nth.closed_form(kernels, PROBLEM, TS).test
    )
    train = nth.infinite.InfiniteKernels(*(part[:N, :N] for part in KERNELS_PARTS))
    values = nth.spectrum(kernels).eigenvalues
    np.testing.assert_array_equal(nth.spectrum(train).eigenvalues, values)
    bounds = nth.theory.bounds(train, 1000)
    np.testing.assert_allclose(bounds.smallest_eigenvalue, values[-1])
    assert bounds.n == N
    with pytest.raises(ValueError, match=r"kernels have shape \(4, 6\): give those"):
        nth.spectrum(nth.infinite.InfiniteKernels(*(p[:N] for p in KERNELS_PARTS)))
    # Two outputs that start at 0 and are trained as two networks.
    both = np.stack([PROBLEM.y_train, 2 * PROBLEM.y_train], axis=1)
    problem = nth.Problem(PROBLEM.x_train, both, PROBLEM.x_test)
    path = nth.closed_form(KERNELS, problem, TS)
    np.testing.assert_allclose(path.test[..., 1], 2 * direct.test, atol=1e-12)


def test_cross_entropy_of_kernels_of_infinite_width():
    """From outputs 0, with the logistic loss: one Euler step at a time."""
    labels = np.array([1.0, -1.0, -1.0, 1.0])
    problem = nth.Problem(
        PROBLEM.x_train, labels, PROBLEM.x_test, loss=nth.LogisticLoss()
    )
    path = nth.integrate(nth.DenseHierarchy(KERNELS, problem), jnp.array([1.0]))

    def euler(steps: int) -> np.ndarray:
        f = np.zeros(len(KERNELS.ntk))
        for _ in range(steps):
            gradient = -labels / (1 + np.exp(labels * f[:N]))
            f = f - np.asarray(KERNELS.ntk)[:, :N] @ gradient / N / steps
        return f

    expected = 2 * euler(400) - euler(200)
    both = np.concatenate([path.train[0], path.test[0]])
    np.testing.assert_allclose(both, expected, atol=1e-5)
    classes = nth.Problem(
        PROBLEM.x_train, (labels > 0).astype(int), loss=nth.SoftmaxCrossEntropy()
    )
    with pytest.raises(ValueError, match=r"outputs must be given .*as_kernels"):
        nth.DenseHierarchy(
            nth.infinite.kernels(PROBLEM.x_train, depth=1, activation="erf"), classes
        )


def test_posterior_of_bayesian_inference():
    """Conditioning the joint Gaussian of outputs and noisy targets."""
    nngp = np.asarray(KERNELS.nngp)
    found = nth.infinite.posterior(
        nth.infinite.InfiniteKernels(KERNELS.nngp, KERNELS.nngp), PROBLEM, noise=0.1
    )
    precision = np.linalg.inv(nngp[:N, :N] + 0.1 * np.eye(N))
    mean = nngp[N:, :N] @ precision @ np.asarray(PROBLEM.y_train)
    covariance = nngp[N:, N:] - nngp[N:, :N] @ precision @ nngp[:N, N:]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)


def test_posterior_of_the_ntk():
    """Gradient flow of linear networks with a ridge, sampled as random features."""
    rng = np.random.default_rng(1)
    found = nth.infinite.posterior(KERNELS, PROBLEM, noise=0.2)
    theta = np.asarray(KERNELS.ntk)
    features = np.linalg.cholesky(theta)  # f = f₀ + features · w
    root = np.linalg.cholesky(np.asarray(KERNELS.nngp))
    inner = features[:N]
    samples = 20_000
    start = root @ rng.normal(size=(len(theta), samples))
    targets = np.asarray(PROBLEM.y_train)[:, None]
    targets = targets + 0.2**0.5 * rng.normal(size=(N, samples))
    # The minimum of |f₀ + features w − y|² + noise |w|².
    normal = inner.T @ inner + 0.2 * np.eye(len(theta))
    weights = np.linalg.solve(normal, inner.T @ (targets - start[:N]))
    draws = start[N:] + features[N:] @ weights
    error = draws.std(axis=1) / samples**0.5
    assert np.all(np.abs(draws.mean(axis=1) - found.mean) < 4 * error)
    covariance = np.cov(draws)
    np.testing.assert_allclose(
        covariance, found.covariance, atol=0.03 * covariance.max()
    )
    # Without noise it is the end of training.
    quiet = nth.infinite.posterior(KERNELS, PROBLEM, noise=1e-9)
    law = nth.infinite.ensemble(KERNELS, PROBLEM, TS)
    assert law.covariance is not None
    np.testing.assert_allclose(quiet.mean, law.mean[-1, N:], atol=1e-6)
    final = np.asarray(law.covariance)[-1, N:, N:]
    np.testing.assert_allclose(quiet.covariance, final, atol=1e-6)


def test_bad_input_and_float32():
    def refused(words: str, call: Any) -> None:
        with pytest.raises(ValueError, match=words):
            call()

    less = jax.tree.map(lambda part: part[:3, :3], KERNELS)
    message = rf"kernels have shape \(3, 3\) and problem has m = {len(KERNELS.ntk)}"
    refused(message, lambda: nth.infinite.as_kernels(less, PROBLEM))
    refused(
        "outputs must have shape",
        lambda: nth.infinite.as_kernels(KERNELS, PROBLEM, outputs=jnp.zeros(3)),
    )
    refused("noise", lambda: nth.infinite.posterior(KERNELS, PROBLEM, noise=0.0))
    broken = jax.tree.map(lambda part: part * jnp.nan, KERNELS)
    refused("NaN", lambda: nth.infinite.posterior(broken, PROBLEM, noise=0.1))
    single = jax.tree.map(lambda part: part.astype(jnp.float32), (KERNELS, PROBLEM))
    found = nth.infinite.posterior(*single, noise=0.1)
    exact = nth.infinite.posterior(KERNELS, PROBLEM, noise=0.1)
    assert found.mean.dtype == jnp.float32
    np.testing.assert_allclose(found.mean, exact.mean, atol=1e-4)
