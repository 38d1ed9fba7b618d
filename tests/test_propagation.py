"""Signal propagation beside closed forms, published numbers and deep kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nth

propagation, critical_line = nth.infinite.propagation, nth.infinite.critical_line


def test_relu_and_linear_networks():
    """q* = σ_b²/(1 − s) and χ = s, for s = σ_w²/2 of ReLU and σ_w² of linear ones."""
    sigma_w, sigma_b = np.array([0.5, 0.7, 0.9]), 0.3
    for name, share in (("relu", sigma_w**2 / 2), ("linear", sigma_w**2)):
        found = propagation(name, sigma_w=sigma_w, sigma_b=sigma_b)
        np.testing.assert_allclose(found.variance, 0.09 / (1 - share), rtol=1e-12)
        np.testing.assert_allclose(found.chi, share, rtol=1e-12)
        np.testing.assert_allclose(found.variance_slope, share, rtol=1e-12)
        depth = -1 / np.log(share)
        np.testing.assert_allclose(found.depth_scale, depth, rtol=1e-12)
        np.testing.assert_allclose(found.variance_depth_scale, depth, rtol=1e-12)
        assert np.all(found.correlation == 1)
    # He initialization: every variance is a fixed point, and χ = 1.
    found = propagation("relu", sigma_w=2**0.5)
    assert found.variance == 1
    np.testing.assert_allclose(found.chi, 1, rtol=1e-14)
    assert propagation("relu", sigma_w=1.5).variance == np.inf
    sigma_w, sigma_b = critical_line("relu", variance=np.array([0.5, 3.0]))
    np.testing.assert_allclose(sigma_w, 2**0.5, rtol=1e-14)
    assert not np.any(sigma_b)


@pytest.mark.parametrize("sigma_w", [0.6, 1.3, 2.5])
def test_erf_networks(sigma_w):
    """E erf(z)² and E erf′(z)² by hand (Williams 1997): χ = 4 σ_w²/(π √(1 + 4q*))."""
    found = propagation("erf", sigma_w=sigma_w, sigma_b=0.4)
    q = float(found.variance)
    mapped = sigma_w**2 * 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)) + 0.16
    np.testing.assert_allclose(mapped, q, rtol=1e-12)
    chi = 4 * sigma_w**2 / np.pi / np.sqrt(1 + 4 * q)
    np.testing.assert_allclose(found.chi, chi, rtol=1e-12)
    c = float(found.correlation)
    inner = 2 * q * c / (1 + 2 * q)
    mapped = (sigma_w**2 * 2 / np.pi * np.arcsin(inner) + 0.16) / q
    np.testing.assert_allclose(mapped, c, rtol=1e-10)
    assert (c < 1) == (chi > 1)
    assert found.correlation_slope < 1


def test_published_numbers():
    """tanh: σ_w² = 1.76 at σ_b² = 0.05 (Schoenholz et al. 2017), and (1, 0) without
    bias. GELU: Roberts, Yaida & Hanin (2022), section 5.3.4."""
    found = propagation("tanh", sigma_w=1.76**0.5, sigma_b=0.05**0.5)
    np.testing.assert_allclose(found.chi, 1, atol=1e-3)
    assert propagation("tanh", sigma_w=1.0).chi == 1
    sigma_w, sigma_b = critical_line("gelu", variance=(3 + 17**0.5) / 2)
    np.testing.assert_allclose(sigma_w**2, 1.98305826, rtol=1e-8)
    np.testing.assert_allclose(sigma_b**2, 0.17292239, rtol=1e-7)


@pytest.mark.parametrize("sigma_w", [1.2, 2.0])
def test_deep_kernels_tend_to_the_fixed_points(sigma_w):
    """The NNGP kernel, layer by layer: to q* and c*, at the rates of both slopes."""
    found = propagation("tanh", sigma_w=sigma_w, sigma_b=0.3)
    x = jnp.array([[1.0, 0.2], [0.3, 0.9]])

    def at(depth: int) -> tuple[float, float]:
        kernel = nth.infinite.kernels(
            x,
            depth=depth,
            parameterization="ntk",
            use_bias=True,
            sigma_w=sigma_w,
            sigma_a=sigma_w,
            sigma_b=0.3,
        ).nngp
        deviation = jnp.sqrt(jnp.diagonal(kernel))
        return float(kernel[0, 0]), float(kernel[0, 1] / deviation[0] / deviation[1])

    (q0, _), (q1, c1), (_, c2) = at(9), at(10), at(11)
    variance, c = float(found.variance), float(found.correlation)
    assert abs(q0 / variance - 1) < 0.02
    slope = (q1 - variance) / (q0 - variance)
    np.testing.assert_allclose(slope, found.variance_slope, rtol=0.02)
    np.testing.assert_allclose((c2 - c) / (c1 - c), found.correlation_slope, rtol=0.05)


def test_shapes_transforms_and_float32():
    sigma_w = jnp.linspace(0.5, 3, 6, dtype=jnp.float32)[:, None]
    sigma_b = jnp.linspace(0, 1, 4, dtype=jnp.float32)[None]
    found = propagation("erf", sigma_w=sigma_w, sigma_b=sigma_b)
    double = propagation(
        "erf", sigma_w=np.asarray(sigma_w, float), sigma_b=np.asarray(sigma_b, float)
    )
    for single, exact in zip(
        jax.tree.leaves(found), jax.tree.leaves(double), strict=True
    ):
        assert single.shape == (6, 4)
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, exact, atol=1e-3)
    line = critical_line("erf", variance=jnp.linspace(0.1, 2, 5))
    edge = propagation("erf", sigma_w=line[0], sigma_b=line[1])
    np.testing.assert_allclose(edge.variance, jnp.linspace(0.1, 2, 5), rtol=1e-10)
    np.testing.assert_allclose(edge.chi, 1, rtol=1e-10)
    assert np.all(edge.depth_scale > 1e5)


def test_bad_input():
    def refused(words: str, **options: object) -> None:
        with pytest.raises(ValueError, match=words):
            propagation(**options)  # pyright: ignore

    refused("sigma_w must not be negative", sigma_w=-1.0)
    refused("sigma_b has NaN", sigma_b=np.nan)
    refused("nodes", nodes=3)
    refused("must broadcast", sigma_w=np.ones(2), sigma_b=np.ones(3))
    with pytest.raises(ValueError, match="variance must not be negative"):
        critical_line(variance=-1.0)
    # Too steep for the nodes: nothing is reported.
    assert np.isnan(propagation("tanh", sigma_w=50.0, nodes=21).chi)
