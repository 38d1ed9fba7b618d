"""Learning curves beside kernel regression on random points."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import nth


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of unit norm; targets ±1 for even and odd."""
    x, labels = load_digits(return_X_y=True)
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, np.where(labels % 2 == 0, 1.0, -1.0)


@pytest.mark.parametrize(("ridge", "noise"), [(0.2, 0.0), (0.5, 0.3)])
def test_kernel_regression_on_digits(ridge, noise):
    """Test errors within 6 % of the mean over 40 draws: the theory takes the modes at
    random points as Gaussian, which they are not."""
    x, y = digits()
    kernel = np.asarray(nth.infinite.kernels(x, depth=1, activation="erf").ntk)
    sizes = [20, 60, 150]
    found = nth.infinite.learning_curve(kernel, y, sizes, ridge=ridge, noise=noise)
    for predicted, n in zip(found.test_error, sizes, strict=True):
        rng = np.random.default_rng(n)
        errors = []
        for _ in range(40):
            chosen = rng.choice(len(y), n)
            noisy = y[chosen] + noise**0.5 * rng.normal(size=n)
            square = kernel[np.ix_(chosen, chosen)] + ridge * np.eye(n)
            f = kernel[:, chosen] @ np.linalg.solve(square, noisy)
            errors.append(np.mean((f - y) ** 2) + noise)
        np.testing.assert_allclose(predicted, np.mean(errors), rtol=0.06)
    assert found.test_error[0] > 1.15 * found.test_error[-1]


@pytest.mark.parametrize("ridge", [0.2, 0.01])
def test_gaussian_features(ridge):
    """Where the modes are Gaussian, also the training error agrees."""
    d, noise = 400, 0.1
    rng = np.random.default_rng(0)
    values, target = np.arange(1, d + 1) ** -1.5, np.arange(1, d + 1) ** -0.8
    kernel, y = np.diag(values * d), target * d**0.5
    found = nth.infinite.learning_curve(kernel, y, [60, 150], ridge=ridge, noise=noise)
    for k, n in enumerate((60, 150)):
        errors = []
        for _ in range(100):
            phi = rng.normal(size=(n, d))
            noisy = phi @ target + noise**0.5 * rng.normal(size=n)
            weights = np.linalg.solve((phi * values) @ phi.T + ridge * np.eye(n), noisy)
            gap = values * (phi.T @ weights) - target
            errors.append((np.sum(gap**2) + noise, np.mean((ridge * weights) ** 2)))
        test, train = np.mean(errors, axis=0)
        np.testing.assert_allclose(found.test_error[k], test, rtol=0.05)
        np.testing.assert_allclose(found.train_error[k], train, rtol=0.05)


def test_equal_eigenvalues():
    """d modes of eigenvalue 1/d: linear regression on white Gaussian inputs. Without a
    ridge κ = (d − n)/(d n), and the error is (1 − n/d) v² + noise over 1 − n/d."""
    d = 50
    kernel, y = np.eye(d), np.zeros(d)
    y[0] = d**0.5  # v² = 1
    n = np.array([5.0, 20.0, 40.0])
    found = nth.infinite.learning_curve(kernel, y, n, noise=0.2)
    share = n / d
    np.testing.assert_allclose(found.effective_ridge, (1 - share) / n, rtol=1e-9)
    np.testing.assert_allclose(found.learned[:, 7], share, rtol=1e-9)
    expected = ((1 - share) ** 2 + 0.2) / (1 - share)
    np.testing.assert_allclose(found.test_error, expected, rtol=1e-9)
    assert not np.any(found.train_error)
    # A large ridge: nothing is learned, and training points are like test points.
    found = nth.infinite.learning_curve(kernel, y, n, ridge=1e9, noise=0.2)
    np.testing.assert_allclose(found.test_error, 1.2, rtol=1e-6)
    np.testing.assert_allclose(found.train_error, 1.2, rtol=1e-6)


def test_bad_input_and_float32():
    kernel, y = np.diag([3.0, 2.0, 1.0, 0.0]), np.ones(4)

    def refused(words: str, *arguments: object, **options: float) -> None:
        with pytest.raises(ValueError, match=words):
            nth.infinite.learning_curve(*arguments, **options)  # pyright: ignore

    refused("kernel must have shape", kernel[:2], y, [1.0])
    refused("targets must have shape", kernel, y[:2], [1.0])
    refused("sizes must be above 0 and, without a ridge, below 3", kernel, y, [3.0])
    refused("sizes", kernel, y, [0.0])
    refused("ridge", kernel, y, [1.0], ridge=-1.0)
    refused("kernel", kernel - 2 * np.eye(4), y, [1.0])
    single = nth.infinite.learning_curve(
        kernel.astype(np.float32), y.astype(np.float32), [1.0, 5.0], ridge=0.1
    )
    exact = nth.infinite.learning_curve(kernel, y, [1.0, 5.0], ridge=0.1)
    assert single.test_error.dtype == jnp.float32
    np.testing.assert_allclose(single.test_error, exact.test_error, rtol=1e-4)
