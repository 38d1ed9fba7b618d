"""Statistics to O(1/width): single neurons, linear networks and sampled networks."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss

import nth

SCALES: Any = {"use_bias": True, "sigma_w": 1.1, "sigma_a": 0.8, "sigma_b": 0.6}
X = np.array([[0.7, -0.2], [-0.4, 0.9], [0.3, 0.5]])


def with_parameters(network: nth.MLP, *values: Any) -> nth.MLP:
    """A network with one neuron whose parameters are w, b, a and c."""
    w, b, a, c = (jnp.reshape(value, (1,)) for value in values)
    network = jax.tree.unflatten(jax.tree.structure(network), [w[None], a[None], b, c])
    return network


def moments_of(kernels: nth.Kernels) -> dict[str, Any]:
    f, k2, k3, k4 = kernels.tensors[:4]
    return {
        "ff": jnp.multiply.outer(f, f),
        "ffff": jnp.multiply.outer(jnp.multiply.outer(f, f), jnp.multiply.outer(f, f)),
        "k2": k2,
        "k2k2": jnp.multiply.outer(k2, k2),
        "k2ff": jnp.multiply.outer(k2, jnp.multiply.outer(f, f)),
        "third": jnp.multiply.outer(k3, f),
        "fourth": k4,
    }


def expected_of(mean: dict[str, Any]) -> dict[str, np.ndarray]:
    """The fields of `Corrections`, from means over networks."""
    ff, k2 = (np.asarray(mean[name]) for name in ("ff", "k2"))
    pairs = np.multiply.outer(ff, ff)
    pairs = pairs + pairs.transpose(0, 2, 1, 3) + pairs.transpose(0, 2, 3, 1)
    return {
        "output_cumulant": mean["ffff"] - pairs,
        "ntk_covariance": mean["k2k2"] - np.multiply.outer(k2, k2),
        "ntk_output_covariance": mean["k2ff"] - np.multiply.outer(k2, ff),
        "third": mean["third"],
        "fourth": mean["fourth"],
    }


@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
def test_one_hidden_layer_is_an_integral_over_one_neuron(parameterization):
    """At width 1 the statistics are exact, and so an integral over four parameters."""
    options: Any = {"depth": 1, "parameterization": parameterization, **SCALES}
    options["activation"] = "sin"
    x = np.array([[0.7], [-0.4]])
    problem = nth.Problem(x, np.zeros(2))
    network = nth.MLP(1, 1, key=jax.random.key(0), **options)
    line = np.linspace(-9, 9, 91)
    smooth = line, np.exp(-(line**2) / 2) / np.exp(-(line**2) / 2).sum()
    exact = hermegauss(5)
    exact = exact[0], exact[1] / exact[1].sum()
    rules = (smooth, smooth, exact, exact)
    grid = np.array(list(product(*(rule[0] for rule in rules))))
    weights = np.prod(list(product(*(rule[1] for rule in rules))), axis=1)
    # Of one input and one neuron, the standard deviations of w, b, a and c.
    scales = {"nth": (1.1, 0.6, 0.8, 0.6), "ntk": (1, 1, 1, 1)}
    stds = np.array(scales.get(parameterization, scales["nth"]))

    def at(values: jax.Array) -> dict[str, Any]:
        changed = with_parameters(network, *values)
        return moments_of(nth.kernels(changed, problem, order=4, progress=False))

    @jax.jit
    def mean(values: jax.Array, weights: jax.Array) -> dict[str, Any]:
        rows = jax.lax.map(at, values, batch_size=4000)
        return jax.tree.map(lambda part: jnp.tensordot(weights, part, 1), rows)

    means = jax.tree.map(
        np.asarray, mean(jnp.asarray(grid * stds), jnp.asarray(weights))
    )
    found = nth.infinite.corrections(x, width=1, **options)
    np.testing.assert_allclose(found.nngp, means["ff"], atol=1e-11)
    assert not np.any(found.nngp_correction)
    np.testing.assert_allclose(
        found.ntk + found.ntk_correction, means["k2"], atol=1e-11
    )
    for name, expected in expected_of(means).items():
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-10)


def test_deep_linear_networks():
    """f = aᵀ W w/√(m₁m₂) of one input: moments of Gaussian matrices, by hand.

    With p = |a|², q = |w|², u = W w, v = Wᵀa, without the factor of the widths,

        K⁽²⁾ = |u|² + |v|² + pq,
        K⁽³⁾ = 4 f (p + q) + 4 g,  g = aᵀ W Wᵀ W w,
        K⁽⁴⁾ = 4 (p + q) K⁽²⁾ + 20 f² + 4 (|Wᵀu|² + |W v|² + p|u|² + q|v|²),

    and the means follow from E p² = m₂² + 2 m₂, E tr (WᵀW)² = m₁m₂(m₁ + m₂ + 1), ….
    """
    m1, m2 = 7, 5
    per_width = 1 / m1 + 1 / m2
    found = nth.infinite.corrections(
        np.ones((1, 1)), width=(m1, m2), depth=2, activation="linear"
    )
    assert found.change == 0
    expected = {
        "nngp": 1,
        "ntk": 3,
        "nngp_correction": 0,
        "ntk_correction": 0,
        "output_cumulant": 6 * per_width,
        "ntk_covariance": 10 * per_width,
        "ntk_output_covariance": 6 * per_width,
        "third": 8 * per_width,
        "fourth": 24 * per_width,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-12)


def test_deep_linear_networks_of_unequal_widths_in_standard():
    """f = aᵀ W w with w ~ N(0, 1), W ~ N(0, 1/m₁) and a ~ N(0, 1/m₂), and the kernels
    of the test before, divided by m₂, m₂², m₂³. The next order is 1/m²."""
    gaps = []
    for m1, m2 in ((70, 50), (140, 100)):
        found = nth.infinite.corrections(
            np.ones((1, 1)),
            width=(m1, m2),
            depth=2,
            activation="linear",
            parameterization="standard",
        )
        p2, q2, trace = 1 + 2 / m2, m1**2 + 2 * m1, (m1 + m2 + 1) / m1
        u4, v4, mean = (m2**2 + 2 * m2) * q2 / m1**2, p2 * (1 + 2 / m1), m1 + m2 + 1
        mixed = m2 * (m1 + 2) + p2 * m1 + (m1 * m2 + 2) / m1
        with_p, with_q = m2 + p2 * m1 + p2, m2 * (m1 + 2) + q2 + m1
        expected = {
            "nngp": 1,
            "ntk": 1 + m1 / m2,
            "nngp_correction": 0,
            "ntk_correction": 1 / m2,
            "output_cumulant": 3 * (p2 * q2 / m1**2 - 1),
            "ntk_covariance": (u4 + p2 * q2 + v4 + 2 * mixed - mean**2) / m2**2,
            "ntk_output_covariance": (u4 / m2 + p2 * q2 / m1 + v4 - mean) / m2,
            "third": 4 * (m1 + 2 + trace + p2) / m2**2,
            "fourth": (with_p + with_q + 5 + (m2 + 1) * trace + m1 + m2) * 4 / m2**3,
        }
        gaps.append([float(np.max(getattr(found, k) - v)) for k, v in expected.items()])
        assert found.fourth[0, 0, 0, 0] > 10 * abs(gaps[-1][-1])
    np.testing.assert_allclose(gaps[0][:4], 0, atol=1e-14)
    ratios = np.divide(gaps[0][4:], gaps[1][4:])
    np.testing.assert_allclose(ratios, 4, rtol=0.05)


def test_relative_widths_of_infinite_networks():
    """The limits of the corrections, which know the widths."""
    options: Any = {"depth": 3, "parameterization": "standard", "sigma_w": 1.4}
    found = nth.infinite.kernels(X, relative_widths=(2, 1, 4), **options)
    expected = nth.infinite.corrections(X[:1], width=(64, 32, 128), nodes=17, **options)
    np.testing.assert_allclose(found.ntk[:1, :1], expected.ntk, rtol=1e-6)
    equal = nth.infinite.kernels(X, **options)
    assert np.all(np.asarray(equal.ntk[0, 0] - found.ntk[0, 0]) > 0.1)
    np.testing.assert_allclose(found.nngp, equal.nngp, rtol=1e-14)
    for widths, name in (((1, 2), "standard"), ((1, 2, 3), "ntk")):
        options["parameterization"] = name
        with pytest.raises(ValueError, match="relative_widths must be a sequence"):
            nth.infinite.kernels(X, relative_widths=widths, **options)


@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
def test_linear_models(parameterization):
    """At depth 0 the law is exact: that of f = F θ with Gaussian θ, whose flow
    dθ/dt = −R Fᵀ(F θ − y)/n is linear, in the space of parameters."""
    options: Any = {"depth": 0, "parameterization": parameterization, **SCALES}
    found = nth.infinite.corrections(X, width=5, **options)
    for name in ("nngp_correction", "ntk_correction", "third", "fourth", "change"):
        assert not np.any(getattr(found, name))
    assert not np.any(found.ntk_covariance)
    assert not np.any(found.output_cumulant)
    features = np.concatenate([X, np.ones((3, 1))], axis=1)
    scale = 1.0 if parameterization == "nth" else 2**0.5
    deviations = np.array([0.8 / scale, 0.8 / scale, 0.6])
    rates = deviations**2 if parameterization == "ntk" else np.ones(3)
    problem = nth.Problem(X[:2], np.array([1.0, -0.5]), X[2:])
    ts = np.array([0.0, 1.0, 7.0])
    law = nth.infinite.ensemble(found, problem, ts)
    slope = -rates[:, None] * (features[:2].T @ features[:2]) / 2
    source = rates * (features[:2].T @ np.array([1.0, -0.5])) / 2
    flow = np.block([[slope, source[:, None]], [np.zeros((1, 4))]])
    covariances = np.asarray(law.covariance)
    for t, mean, covariance in zip(ts, law.mean, covariances, strict=True):
        moved = np.asarray(jax.scipy.linalg.expm(jnp.asarray(flow * t)))
        outputs = features @ moved[:3]
        np.testing.assert_allclose(mean, outputs[:, 3], atol=1e-12)
        half = outputs[:, :3] * deviations
        np.testing.assert_allclose(covariance, half @ half.T, atol=1e-12)


def test_catapult_network():
    """f = Σ u v/√N: K⁽³⁾ = 4 f/N and K⁽⁴⁾ = 4 K⁽²⁾/N (Lewkowycz et al. 2020)."""
    found = nth.infinite.corrections(
        np.ones((1, 1)), width=11, depth=1, activation="linear"
    )
    np.testing.assert_allclose(found.third, 4 / 11 * found.nngp[0, 0], rtol=1e-12)
    np.testing.assert_allclose(found.fourth, 4 / 11 * found.ntk[0, 0], rtol=1e-12)


def given_first_layer(averages: jax.Array, width: float) -> jax.Array:
    """E f f and E K⁽²⁾ at two points given the first of two hidden layers, in "ntk".

    They depend on averages over its neurons: C φ_c φ_d, and φ′_a φ′_b Θ_ab without and
    with φ_c φ_d, for (c, d) = aa, ab, bb. With a Gaussian w and g(z) = φ′(z_a) φ′(z_b)
    of z = √C w·φ, E g wᵀM w is tr M E g plus terms in the curvature of g.
    """
    line = jnp.linspace(-8, 8, 65)
    weights = jnp.exp(-(line**2) / 2) / jnp.sum(jnp.exp(-(line**2) / 2))
    aa, ab, bb, chain, *quadratic = averages
    u = jnp.sqrt(aa) * jnp.broadcast_to(line[:, None], (65, 65))
    along = ab / jnp.sqrt(aa)
    v = along * line[:, None] + jnp.sqrt(bb - along**2) * line[None]
    slope, third = (lambda z: jnp.cos(z)), (lambda z: -jnp.cos(z))

    def mean(values: jax.Array) -> jax.Array:
        return weights @ values @ weights

    c = SCALES["sigma_w"] ** 2
    curvature = (
        mean(third(u) * slope(v)),
        2 * mean(jnp.sin(u) * jnp.sin(v)),
        mean(slope(u) * third(v)),
    )
    bent = sum(q * g for q, g in zip(quadratic, curvature, strict=True))
    own = ab + c * chain  # the NTK's parts of the second layer and of the first
    neuron = mean(slope(u) * slope(v)) * own + c**2 * bent / width
    outputs = mean(jnp.sin(u) * jnp.sin(v))
    return SCALES["sigma_a"] ** 2 * jnp.stack([outputs, outputs + neuron])


def test_two_hidden_layers_given_the_first():
    """Expanded to second order about the means of the averages over the first layer,
    whose covariance is an integral over one neuron, without any recursion. What is left
    of E K⁽²⁾ is of order 1/m², and of E f f nothing."""
    scales: Any = {k: SCALES[k] for k in ("sigma_w", "sigma_a")}
    c, x = SCALES["sigma_w"] ** 2, X[:2]
    first = c / 2 * x @ x.T  # Σ and Θ of the first layer
    line = np.linspace(-8, 8, 201)
    weights = np.exp(-(line**2) / 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    root = np.linalg.cholesky(first)
    z = [root[0, 0] * line[:, None] + 0 * line, None]
    z[1] = root[1, 0] * line[:, None] + root[1, 1] * line
    squares = [np.sin(z[i]) * np.sin(z[j]) for i, j in ((0, 0), (0, 1), (1, 1))]
    chain = np.cos(z[0]) * np.cos(z[1]) * first[0, 1]
    parts = np.stack([*[c * s for s in squares], chain, *[chain * s for s in squares]])
    means = jnp.asarray(np.sum(weights * parts, axis=(1, 2)))
    covariance = np.einsum("xy,ixy,jxy->ij", weights, parts, parts)
    covariance -= np.outer(means, means)
    hessian = jax.jit(jax.hessian(given_first_layer))
    gaps = []
    for width in (8.0, 16.0):
        bent = jnp.einsum("kij,ij->k", hessian(means, width), jnp.asarray(covariance))
        expected = given_first_layer(means, width) + bent / 2 / width
        found = nth.infinite.corrections(
            x,
            width=int(width),
            depth=2,
            activation="sin",
            parameterization="ntk",
            **scales,
        )
        value = found.nngp + found.nngp_correction, found.ntk + found.ntk_correction
        gaps.append([float(e - v[0, 1]) for e, v in zip(expected, value, strict=True)])
        size = abs(float(found.nngp_correction[0, 1]))
        assert abs(gaps[-1][0]) < 1e-6 * size
        assert size > 1e-4
    np.testing.assert_allclose(gaps[0][1] / gaps[1][1], 4, rtol=1e-3)


@pytest.mark.parametrize(("depth", "parameterization"), [(2, "standard"), (3, "nth")])
def test_sampled_networks(depth, parameterization):
    """Within the standard errors of 4,000 networks, which resolve the O(1/m) terms, and
    terms of relative order 1/m, the next in the expansion."""
    width, samples = 96, 4000
    options: Any = {"depth": depth, "parameterization": parameterization, **SCALES}
    options |= {"sigma_w": 1.5, "sigma_a": 1.2, "sigma_b": 0.3}
    problem = nth.Problem(X, np.zeros(3))
    # Kernels for learning rates of 1/width.
    speed = 1 / width if parameterization == "standard" else 1

    @jax.jit
    def sample(keys: jax.Array) -> dict[str, Any]:
        def of_key(key: jax.Array) -> dict[str, Any]:
            network = nth.MLP(2, width, key=key, **options)
            kernels = nth.kernels(network, problem, order=4, progress=False)
            tensors = (kernels[r] * speed ** (r - 1) for r in range(1, 5))
            return moments_of(nth.Kernels(tuple(tensors)))

        return jax.lax.map(of_key, keys, batch_size=20)

    rows = sample(jax.random.split(jax.random.key(depth), samples))
    rows = jax.tree.map(np.asarray, rows)
    means = {name: row.mean(axis=0) for name, row in rows.items()}
    found = nth.infinite.corrections(X, width=width, **options)
    centered = rows["k2"] - means["k2"]
    ff, k2 = found.nngp + found.nngp_correction, found.ntk + found.ntk_correction
    pairs = np.multiply.outer(ff, ff)
    pairs = pairs + pairs.transpose(0, 2, 1, 3) + pairs.transpose(0, 2, 3, 1)
    cases = {
        "ff": (rows["ff"], ff),
        "k2": (rows["k2"], k2),
        "ffff": (rows["ffff"], pairs + found.output_cumulant),
        "ntk_covariance": (
            np.einsum("zab,zcd->zabcd", centered, centered),
            found.ntk_covariance,
        ),
        "ntk_output_covariance": (
            np.einsum("zab,zcd->zabcd", centered, rows["ff"]),
            found.ntk_output_covariance,
        ),
        "third": (rows["third"], found.third),
        "fourth": (rows["fourth"], found.fourth),
    }
    for name, (draws, expected) in cases.items():
        error = draws.std(axis=0) / samples**0.5
        gap = np.abs(draws.mean(axis=0) - expected)
        next_order = 3 / width * np.max(np.abs(expected))
        exact = name in ("ff", "k2", "ffff")  # the O(1/m) terms are small parts of them
        score = np.maximum(gap - (0 if exact else next_order), 0) / error
        assert np.sqrt(np.mean(score**2)) < 2, (name, score)
        if name in ("ntk_covariance", "third", "fourth"):  # zero at infinite width
            assert np.max(np.abs(draws.mean(axis=0)) / error) > 10, name


def test_scaling_symmetries_and_float32():
    """Everything is 1/width; slots that commute do; float32 agrees with float64."""
    options: Any = {"depth": 2, "activation": "erf", **SCALES}
    narrow = nth.infinite.corrections(X, width=32, **options)
    wide = nth.infinite.corrections(X, width=(64, 64), **options)
    single = nth.infinite.corrections(X.astype(np.float32), width=32, **options)
    limit = nth.infinite.kernels(X, **options)
    np.testing.assert_allclose(narrow.nngp, limit.nngp, rtol=1e-10)
    np.testing.assert_allclose(narrow.ntk, limit.ntk, rtol=1e-10)
    for name in ("nngp_correction", "ntk_correction", "third", "fourth"):
        value = np.asarray(getattr(narrow, name))
        size = np.max(np.abs(value))
        twice = 2 * getattr(wide, name)
        np.testing.assert_allclose(value, twice, atol=1e-10 * size)
        assert getattr(single, name).dtype == np.float32
        np.testing.assert_allclose(getattr(single, name), value, atol=1e-3 * size)
    cumulant = np.asarray(narrow.output_cumulant)
    np.testing.assert_allclose(cumulant, cumulant.transpose(2, 0, 3, 1), atol=1e-12)
    for tensor in (narrow.third, narrow.fourth):
        np.testing.assert_allclose(tensor, jnp.swapaxes(tensor, 0, 1), atol=1e-12)
    # K⁽⁴⁾ does not commute in its last two slots.
    gap = narrow.fourth - jnp.swapaxes(narrow.fourth, 2, 3)
    assert jnp.max(jnp.abs(gap)) > 1e-4


def test_bad_input():
    def refused(words: str, x: Any = X, **changes: Any) -> None:
        options: Any = {"width": 8, "depth": 2, **changes}
        with pytest.raises(ValueError, match=words):
            nth.infinite.corrections(x, **options)

    refused("x must have shape", x=X[0])
    refused("width must be a number, or a sequence of depth = 2", width=(8,))
    refused("width", width=0)
    refused("depth", depth=-1)
    refused("nodes", nodes=4)
    refused('activation is "relu"', activation="relu")
    refused("x has NaN", x=X * np.nan)
    refused("activation is too rough or too steep", sigma_w=40.0, nodes=11)
