"""Mean and variance of the NTK of ReLU networks at one point, at finite width."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nth

X = np.array([[0.6, -0.8, 0.3]])


@pytest.mark.parametrize(
    ("parameterization", "width", "depth"),
    [("ntk", (4, 3, 5), 3), ("standard", 4, 2), ("nth", 3, 1)],
)
def test_sampled_networks(parameterization, width, depth):
    """Mean and variance within 4 standard errors of narrow networks, whose variance is
    of the order of the squared mean."""
    sigma_w, sigma_a, samples = 1.3, 0.8, 20_000
    options: Any = {"parameterization": parameterization}
    options |= {"sigma_w": sigma_w, "sigma_a": sigma_a}
    widths = (width,) * depth if isinstance(width, int) else width
    fans = (3, *widths)

    def of_key(key: jax.Array) -> jax.Array:
        weights, scales = [], []
        parts = jax.random.split(key, depth + 1)
        for k, shape in enumerate(zip((*widths, 1), fans, strict=True)):
            sigma = sigma_a if k == depth else sigma_w
            root = 1.0 if parameterization == "nth" and k == 0 else shape[1] ** 0.5
            drawn, factor = {
                "nth": (sigma, 1 / root),
                "ntk": (1.0, sigma / root),
                "standard": (sigma / root, 1.0),
            }[parameterization]
            weights.append(drawn * jax.random.normal(parts[k], shape))
            scales.append(factor)

        def output(weights: list[jax.Array]) -> jax.Array:
            h = jnp.asarray(X[0])
            for k, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
                h = scale * (weight @ (h if k == 0 else jax.nn.relu(h)))
            return h[0]

        gradient = jax.tree.leaves(jax.grad(output)(weights))
        return jnp.sum(jnp.stack([jnp.sum(part**2) for part in gradient]))

    keys = jax.random.split(jax.random.key(depth), samples)
    draws = np.asarray(jax.jit(lambda k: jax.lax.map(of_key, k, batch_size=1000))(keys))
    found = nth.infinite.ntk_moments(X, width=width, depth=depth, **options)
    error = draws.std() / samples**0.5
    assert abs(draws.mean() - found.mean[0]) < 4 * error
    squares = (draws - draws.mean()) ** 2
    error = squares.std() / samples**0.5
    assert abs(squares.mean() - found.variance[0]) < 4 * error
    assert found.relative_variance[0] > 0.3


@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
def test_linear_networks_have_the_variance_of_the_corrections(parameterization):
    """Exact for one hidden layer; for three, up to terms of order 1/m²."""

    def both(depth: int, width: int) -> tuple[float, float]:
        options: Any = {"width": width, "depth": depth, "activation": "linear"}
        options |= {"parameterization": parameterization, "sigma_w": 1.2}
        # K⁽²⁾ of corrections is divided by the width in "standard".
        speed = width if parameterization == "standard" else 1
        exact = nth.infinite.ntk_moments(X, **options)
        found = nth.infinite.corrections(X, **options)
        mean = float(found.ntk[0, 0] + found.ntk_correction[0, 0]) * speed
        np.testing.assert_allclose(exact.mean[0], mean, rtol=1e-12)
        variance = float(found.ntk_covariance[0, 0, 0, 0]) * speed**2
        return float(exact.variance[0]) / mean**2, variance / mean**2

    np.testing.assert_allclose(*both(1, 5), rtol=1e-12)
    gaps = [np.subtract(*both(3, width)) for width in (50, 500)]
    np.testing.assert_allclose(gaps[0] / gaps[1], 100, rtol=0.15)


def test_hanin_and_nica():
    """With σ_w² = 2 E K²/(E K)² grows by 1 + 5/m with each layer, as exp(5 Σ 1/m), and
    is a function of depth/width in the limit of both."""
    options: Any = {"parameterization": "ntk", "sigma_w": 2**0.5}

    def second(depth: int, width: int) -> float:
        found = nth.infinite.ntk_moments(X, width=width, depth=depth, **options)
        # The mean is 1 for each layer, in units of σ_a² |x|²/d.
        mean = 1.09 / 3 * (depth + 1)
        np.testing.assert_allclose(found.mean[0], mean, rtol=1e-12)
        return 1 + float(found.relative_variance[0])

    np.testing.assert_allclose(second(401, 10) / second(400, 10), 1.5, rtol=1e-3)
    # The distance from that function falls as 1/m.
    small, middle, large = (second(m, m) for m in (100, 200, 400))
    np.testing.assert_allclose((middle - small) / (large - middle), 2, rtol=0.1)
    assert small > 10


def test_float32_and_bad_input(without_type_checks):
    options: Any = {"width": 4, "depth": 2}
    single = nth.infinite.ntk_moments(X.astype(np.float32), **options)
    double = nth.infinite.ntk_moments(X, **options)
    assert single.variance.dtype == jnp.float32
    np.testing.assert_allclose(single.variance, double.variance, rtol=1e-5)
    twice = nth.infinite.ntk_moments(np.concatenate([X, 2 * X]), **options)
    np.testing.assert_allclose(*twice.relative_variance, rtol=1e-12)

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=words):
            nth.infinite.ntk_moments(**{"x": X, **options, **changes})

    unknown: Any = "tanh"
    refused("activation must be one of 'relu', 'linear'", activation=unknown)
    refused("width must be a number, or a sequence of depth = 2", width=(4,))
    refused("depth must be at least 1", depth=0)
    refused("x must have shape", x=X[0])
