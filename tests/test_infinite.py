"""Infinite width: kernels beside plain integrals, finite networks and slopes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.special
from conftest import make_problem
from finite_differences import central_slopes
from scipy.integrate import dblquad, simpson

import nth
from nth._network.activations import ACTIVATIONS
from nth.infinite import _recursion as _recursion

X = np.array([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [0.5, -0.5, 1.0], [-0.3, 0.4, 0.2]])
SCALES: Any = {"sigma_w": 1.4, "sigma_a": 0.8, "sigma_b": 0.5}


def gauss(function, a, b, c):
    """E F(u, v) by adaptive quadrature over independent u and (v − (c/a) u)."""
    slope, rest = c / a, np.sqrt(b - c**2 / a)

    def integrand(q, p):
        u = np.sqrt(a) * p
        weight = np.exp(-(p**2 + q**2) / 2) / (2 * np.pi)
        return function(u, slope * u + rest * q) * weight

    return dblquad(integrand, -8, 8, -8, 8, epsabs=1e-9, epsrel=1e-9)[0]


@pytest.mark.parametrize(
    ("name", "phi", "slope", "tolerance"),
    [
        ("erf", scipy.special.erf, lambda z: 2 / np.pi**0.5 * np.exp(-(z**2)), 1e-9),
        ("tanh", np.tanh, lambda z: 1 / np.cosh(z) ** 2, 1e-9),
        ("sin", np.sin, np.cos, 1e-9),
        ("linear", lambda z: z, np.ones_like, 1e-9),
    ],
)
def test_one_hidden_layer_is_two_integrals(name, phi, slope, tolerance):
    """In "nth": Σ = σ_a² E φφ + σ_b², Θ = E φφ + 1 + σ_a² E φ′φ′ (xᵀx′ + 1)."""
    inner = X[0] @ X[2]
    a, b, c = (1.4**2 * s + 0.25 for s in (X[0] @ X[0], X[2] @ X[2], inner))
    value = gauss(lambda u, v: phi(u) * phi(v), a, b, c)
    rate = gauss(lambda u, v: slope(u) * slope(v), a, b, c)
    kernels = nth.infinite.kernels(X, depth=1, activation=name, use_bias=True, **SCALES)
    np.testing.assert_allclose(kernels.nngp[0, 2], 0.64 * value + 0.25, tolerance)
    expected = value + 1 + 0.64 * rate * (inner + 1)
    np.testing.assert_allclose(kernels.ntk[0, 2], expected, tolerance)


def test_relu_is_two_integrals():
    """The same in polar coordinates, where the kinks are at known angles."""
    inner = X[0] @ X[2]
    a, b, c = (1.4**2 * s + 0.25 for s in (X[0] @ X[0], X[2] @ X[2], inner))
    angle = np.arccos(c / np.sqrt(a * b))
    turned = np.linspace(angle - np.pi / 2, np.pi / 2, 20_001)
    product = np.sqrt(a * b) * np.cos(turned) * np.cos(turned - angle)
    value = simpson(product, x=turned) / np.pi  # over r, r³e^{−r²/2} gives 2
    rate = (np.pi - angle) / (2 * np.pi)
    kernels = nth.infinite.kernels(
        X, depth=1, activation="relu", use_bias=True, **SCALES
    )
    np.testing.assert_allclose(kernels.nngp[0, 2], 0.64 * value + 0.25, 1e-12)
    expected = value + 1 + 0.64 * rate * (inner + 1)
    np.testing.assert_allclose(kernels.ntk[0, 2], expected, 1e-12)


@pytest.mark.parametrize("name", ["erf", "sin", "linear"])
@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
def test_closed_forms_are_the_sums_over_nodes(name, parameterization):
    function = ACTIVATIONS[name]
    options: Any = {"depth": 3, "use_bias": True, "parameterization": parameterization}
    closed = nth.infinite.kernels(X, activation=name, **options, **SCALES)
    # Under another name, so that it is not known.
    unknown = eqx.nn.Lambda(function)
    summed = nth.infinite.kernels(X, activation=unknown, **options, **SCALES)
    np.testing.assert_allclose(closed.nngp, summed.nngp, rtol=1e-12)
    np.testing.assert_allclose(closed.ntk, summed.ntk, rtol=1e-12)


def test_wide_inputs_of_an_activation_take_more_nodes():
    """tanh at a standard deviation of 8, for which 161 nodes are too few: in one
    dimension, for one point, against the trapezoidal rule with 20,001 nodes."""
    x = np.array([[8.0, 0.0], [0.0, 6.0]])
    found = nth.infinite.kernels(x, depth=1, activation="tanh")
    z, step = np.linspace(-10, 10, 20_001, retstep=True)
    weights = step * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    for k, size in enumerate((8, 6)):
        value = weights @ np.tanh(size * z) ** 2
        slope = weights @ np.cosh(size * z) ** -4.0
        np.testing.assert_allclose(found.nngp[k, k], value, rtol=1e-9)
        np.testing.assert_allclose(found.ntk[k, k], value + size**2 * slope, rtol=1e-6)
    with pytest.raises(ValueError, match="too rough or too steep for sums over 161"):
        nth.infinite.kernels(x, depth=1, activation="tanh", nodes=161)


@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
def test_depth_zero_is_a_linear_model(parameterization):
    """f = aᵀx + c, whose K⁽²⁾ is the same for every initialization."""
    options: Any = {"parameterization": parameterization, "use_bias": True}
    found = nth.infinite.kernels(X, depth=0, **options, **SCALES)
    inner = X @ X.T
    mean = inner if parameterization == "nth" else inner / 3
    np.testing.assert_allclose(found.nngp, 0.64 * mean + 0.25, rtol=1e-13)
    # The gradient in a is x, times σ_a/√d in "ntk", and in c is 1, or σ_b.
    ntk = 0.64 * inner / 3 + 0.25 if parameterization == "ntk" else inner + 1
    np.testing.assert_allclose(found.ntk, ntk, rtol=1e-13)


def test_softplus_tends_to_relu():
    """By sums over nodes, as 1/a: the closed form of ReLU, in all three layers."""
    relu = nth.infinite.kernels(X, depth=2, activation="relu", **SCALES)
    errors = []
    for a in (2.0, 4.0):
        near = nth.infinite.kernels(
            X, depth=2, activation=nth.softplus(a), nodes=321, **SCALES
        )
        errors.append(jnp.max(jnp.abs(near.nngp - relu.nngp)))
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 2.5


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-4, 0.7, np.pi])
def test_relu_has_every_digit_at_every_angle(angle):
    """At depth 1 by hand: Σ̇ = (π − θ)/2π; two points 1e-8 apart, and opposite ones."""
    x = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    if angle == np.pi:
        x[1] = [-1, 0]
    lune = np.sin(angle) + (np.pi - angle) * np.cos(angle)
    kernels = nth.infinite.kernels(x[:1], x[1:], depth=1, activation="relu")
    slope = (np.pi - angle) / (2 * np.pi)
    exact = lune / (2 * np.pi) + slope * np.cos(angle)
    np.testing.assert_allclose(kernels.ntk[0, 0], exact, rtol=4e-16, atol=1e-16)
    # Deeper, Cho & Saul's angle once more, θ′ by asin of half the chord.
    chord = (1 - np.cos(angle)) - (np.sin(angle) - angle * np.cos(angle)) / np.pi
    if 1e-4 <= angle < 3:
        deeper = 2 * np.arcsin(np.sqrt(chord / 2))
        nngp = np.sin(deeper) + (np.pi - deeper) * np.cos(deeper)
        expected = (nngp + (np.pi - deeper) * 2 * exact) / (4 * np.pi)
        deep = nth.infinite.kernels(x[:1], x[1:], depth=2, activation="relu")
        np.testing.assert_allclose(deep.ntk[0, 0], expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["relu", "sin", "tanh"])
@pytest.mark.parametrize("two_sets", [False, True])
def test_tiles_and_loops_over_layers_change_nothing(monkeypatch, name, two_sets):
    """Seven points in tiles of three, the last of which overlaps, one after another or
    all at once, against one tile with the layers unrolled."""
    x = np.random.default_rng(1).normal(size=(11, 3)) / 2
    points = (x[:7], x[7:]) if two_sets else (x[:7],)
    options: Any = {"depth": 3, "activation": name, "use_bias": True}
    whole = nth.infinite.kernels(*points, **options, **SCALES)
    for size in ("_TILE", "_TILE_OF_SUMS", "_UNROLLED_TILE"):
        monkeypatch.setattr(_recursion, size, 3)
    for most in (0,) if two_sets or name == "tanh" else (0, _recursion._MOST_WHOLE):
        monkeypatch.setattr(_recursion, "_MOST_WHOLE", most)
        eqx.clear_caches()
        tiled = nth.infinite.kernels(*points, **options, **SCALES)
        for part, expected in zip(*map(jax.tree.leaves, (tiled, whole)), strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-13)
            if not two_sets:
                np.testing.assert_array_equal(part, part.T)
    eqx.clear_caches()


def test_a_deep_linear_network_by_hand():
    """Beyond 16 layers they are in a loop: Σ = σ_a² σ_w^{2L} S, and every layer adds
    the product of all the other scales to Θ."""
    depth, sigma = 20, 1.1
    kernels = nth.infinite.kernels(
        X, depth=depth, activation="linear", sigma_w=sigma, sigma_a=0.7
    )
    inner = X @ X.T
    np.testing.assert_allclose(
        kernels.nngp, 0.49 * sigma ** (2 * depth) * inner, rtol=1e-12
    )
    layers = 0.49 * depth * sigma ** (2 * depth - 2) + sigma ** (2 * depth)
    np.testing.assert_allclose(kernels.ntk, layers * inner, rtol=1e-12)


def test_slopes_in_tiles(monkeypatch):
    """Reverse mode passes through the tiles, written over each other."""
    x, direction = jnp.asarray(X), jnp.asarray(X[::-1])

    def total(step):
        moved = nth.infinite.kernels(x + step * direction, depth=2, activation="sin")
        weights = jnp.cos(jnp.arange(16.0)).reshape(4, 4)
        return jnp.vdot(weights, moved.ntk) + jnp.vdot(weights, moved.nngp)

    expected = jax.grad(total)(0.0)
    monkeypatch.setattr(_recursion, "_TILE", 3)
    monkeypatch.setattr(_recursion, "_MOST_WHOLE", 0)
    eqx.clear_caches()
    np.testing.assert_allclose(jax.grad(total)(0.0), expected, rtol=1e-11)
    eqx.clear_caches()


def mean_ntk(width, samples, seed=0, scale=1.0, **options):
    """The mean NTK of finite networks at X[1] and X[0], and its standard error."""

    def one(key):
        network = nth.MLP(3, width, key=key, **options)
        gradient = eqx.filter_grad(lambda network, x: network(x))
        rows = jax.vmap(gradient, (None, 0))(network, jnp.asarray(X[:2]))
        return sum(jnp.vdot(g[0], g[1]) for g in jax.tree.leaves(rows)) / scale

    keys = jax.random.split(jax.random.key(seed), samples)
    draws = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=2000))(keys)
    return float(jnp.mean(draws)), float(jnp.std(draws)) / samples**0.5


def test_the_mean_ntk_tends_to_it_as_one_over_the_width():
    options: Any = {"depth": 3, "activation": "erf", "sigma_w": 2.0}
    limit = nth.infinite.kernels(X, **options).ntk[0, 1]
    gaps, errors = zip(
        *[
            (mean - float(limit), error)
            for mean, error in (mean_ntk(w, 40_000, **options) for w in (4, 16))
        ],
        strict=True,
    )
    exponent = np.log(gaps[1] / gaps[0]) / np.log(4)
    doubt = np.hypot(errors[0] / gaps[0], errors[1] / gaps[1]) / np.log(4)
    print(f"the mean NTK's distance falls as width^({exponent:.2f} ± {doubt:.2f})")
    assert doubt < 0.1
    np.testing.assert_allclose(exponent, -1, atol=0.25)


@pytest.mark.parametrize(
    ("parameterization", "depth", "activation", "width", "draws"),
    [
        ("nth", 1, "relu", 20, 20_000),
        ("ntk", 2, "tanh", 60, 5_000),
        ("standard", 1, "erf", 40, 20_000),
    ],
)
def test_finite_networks_in_each_parameterization(
    parameterization, depth, activation, width, draws
):
    """Means over draws, biases and every σ ≠ 1 included, to 4 standard errors.

    "standard" at one hidden layer and width w: K⁽²⁾/w is off by 1/w times the part of
    the first layer and of the biases, which the limit leaves out.
    """
    options: Any = {
        "depth": depth,
        "activation": activation,
        "parameterization": parameterization,
        "use_bias": True,
        **SCALES,
    }
    limit = float(nth.infinite.kernels(X, **options).ntk[0, 1])
    scale = width if parameterization == "standard" else 1
    mean, error = mean_ntk(width, draws, scale=scale, **options)
    bias = 0.0
    if parameterization == "standard":
        a, b, c = (1.4**2 * s / 3 + 0.25 for s in (1, 1, X[0] @ X[1]))
        rate = 4 / np.pi / np.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c**2)
        bias = (1 + 0.64 * rate * (X[0] @ X[1] + 1)) / width
    elif depth > 1:
        error += 0.2 / width  # the limit's own distance, of order 1/width
    assert abs(mean - limit - bias) < 4 * error
    assert abs(mean - limit - bias) < 0.01 * limit


def test_several_outputs_are_independent_copies():
    """At large width K⁽²⁾ is the scalar kernel times the identity on the outputs."""
    problem = nth.Problem(X, np.zeros((4, 2)))
    network = nth.MLP(3, 20_000, 1, out_size=2, activation="erf", key=jax.random.key(0))
    formed = nth.kernels(network, problem, order=2)[2]
    one = nth.infinite.kernels(X, depth=1, activation="erf").ntk
    expected = one[:, None, :, None] * jnp.eye(2)[None, :, None, :]
    np.testing.assert_allclose(formed, expected, atol=0.04)


@pytest.mark.parametrize("activation", ["tanh", "relu", "erf"])
@pytest.mark.parametrize("bias", [False, True])
def test_slopes_where_points_coincide(activation, bias):
    """Against differences: with equal points, parallel ones and one at the origin."""
    x = np.array([[1.0, 0.5], [1.0, 0.5], [2.0, 1.0], [0.0, 0.0]])
    x = jnp.asarray(x[: 3 if activation == "relu" else 4])
    direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))

    @jax.jit
    def total(step, sigma):
        options: Any = {"activation": activation, "use_bias": bias, "sigma_w": sigma}
        moved = nth.infinite.kernels(
            (x + step * direction) / 2, depth=2, nodes=121, **options
        )
        weights = jnp.cos(jnp.arange(float(len(x) ** 2))).reshape(len(x), -1)
        return jnp.vdot(weights, moved.ntk) + jnp.vdot(weights, moved.nngp)

    point = jnp.asarray(0.0), jnp.asarray(1.2)
    slopes = jax.jit(jax.grad(total, (0, 1)))(*point)
    # ReLU's kink at equal points is even, so that it cancels in differences, too.
    for slope, expected in zip(slopes, central_slopes(total, point), strict=True):
        np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_second_slopes_are_finite():
    def entry(x):
        return nth.infinite.kernels(x, jnp.asarray(X[:1]), depth=1, nodes=121).ntk[0, 0]

    hessian = jax.jit(jax.hessian(entry))(jnp.asarray(X[:1]))
    h = 1e-4
    steps = [jnp.asarray(X[:1]).at[0, 0].add(s) for s in (h, 0.0, -h)]
    up, middle, down = (jax.jit(entry)(x) for x in steps)
    expected = (up - 2 * middle + down) / h**2
    np.testing.assert_allclose(hessian[0, 0, 0, 0], expected, atol=1e-6)


def gaussian_problem():
    problem = make_problem(3, 2)
    options: Any = {"depth": 1, "activation": "erf", "sigma_w": 1.5}
    return problem, options, nth.infinite.kernels(problem.x, **options)


def test_ensemble_of_wide_networks():
    """Mean and covariance over 4,000 networks of width 256, each by its own level 2."""
    problem, options, kernels = gaussian_problem()
    ts = [0.0, 2.0, 20.0, jnp.inf]
    law = nth.infinite.ensemble(kernels, problem, ts)
    assert law.covariance is not None

    def one(key):
        network = nth.MLP(3, 256, key=key, **options)
        path = nth.closed_form(nth.kernels(network, problem, order=2), problem, ts)
        return jnp.concatenate([path.train, path.test], axis=1)

    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(keys)
    )
    np.testing.assert_allclose(draws.mean(axis=0), law.mean, atol=0.03)
    for i in range(len(ts)):
        expected = law.covariance[i]
        np.testing.assert_allclose(np.cov(draws[:, i].T), expected, atol=0.03)
        assert np.max(np.abs(np.cov(draws[:, i].T) - expected)) < 0.06 * np.max(
            law.covariance[0]
        )


def test_ensemble_at_the_ends_is_prior_and_posterior():
    problem, _, kernels = gaussian_problem()
    bayes = dataclasses.replace(kernels, ntk=kernels.nngp)
    law = nth.infinite.ensemble(bayes, problem, [0.0, jnp.inf])
    assert law.covariance is not None
    prior, y = np.asarray(kernels.nngp), np.asarray(problem.y_train)
    np.testing.assert_allclose(law.covariance[0], prior, atol=1e-15)
    np.testing.assert_allclose(law.mean[0], 0, atol=1e-14)
    gain = np.linalg.solve(prior[:3, :3], prior[:3, 3:]).T
    np.testing.assert_allclose(law.mean[1], [*y, *(gain @ y)], rtol=1e-9)
    posterior = prior[3:, 3:] - gain @ prior[:3, 3:]
    np.testing.assert_allclose(law.covariance[1][3:, 3:], posterior, atol=1e-12)
    np.testing.assert_allclose(law.covariance[1][:3], 0, atol=1e-12)
    np.testing.assert_allclose(law.deviation[1][3:] ** 2, np.diag(posterior))


def test_parts_of_the_law_of_an_ensemble():
    problem, _, kernels = gaussian_problem()
    ts = [0.0, 2.0, jnp.inf]
    law = nth.infinite.ensemble(kernels, problem, ts)
    assert law.covariance is not None
    for points, kept in (("all", slice(0, None)), ("test", slice(3, None))):
        for covariance in (True, False):
            part = nth.infinite.ensemble(
                kernels, problem, ts, points=points, covariance=covariance
            )
            np.testing.assert_allclose(part.mean, law.mean[:, kept], atol=1e-14)
            np.testing.assert_allclose(part.variance, law.variance[:, kept], atol=1e-14)
            assert (part.covariance is not None) == covariance
            if part.covariance is not None:
                expected = law.covariance[:, kept, kept]
                np.testing.assert_allclose(part.covariance, expected, atol=1e-14)
                own = jnp.diagonal(part.covariance, axis1=1, axis2=2)
                np.testing.assert_allclose(part.variance, own, atol=1e-14)
    with pytest.raises(ValueError, match=r"points must be one of 'all', 'test'"):
        nth.infinite.ensemble(kernels, problem, ts, points="train")
    whole = nth.Problem(problem.x, jnp.zeros(5))
    with pytest.raises(ValueError, match='points is "test", and problem has no test'):
        nth.infinite.ensemble(kernels, whole, ts, points="test")


def test_ensemble_with_a_singular_kernel_and_several_outputs():
    problem, options, _ = gaussian_problem()
    x = problem.x.at[1].set(problem.x[0])
    y = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    twice = nth.Problem(x[:3], y, x[3:])
    kernels = nth.infinite.kernels(x, **options)
    law = nth.infinite.ensemble(kernels, twice, [5.0, jnp.inf])
    np.testing.assert_allclose(law.mean[1, :3], [[2, 0], [2, 0], [0, 2]], atol=1e-9)
    assert jnp.all(jnp.isfinite(law.deviation))
    one = nth.infinite.ensemble(
        kernels, nth.Problem(x[:3], y[:, 1], x[3:]), [5.0, jnp.inf]
    )
    np.testing.assert_allclose(law.mean[..., 1], one.mean, atol=1e-14)


def test_ensemble_refuses_other_kernels(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    problem, _, kernels = gaussian_problem()

    def refused(message, **parts):
        with pytest.raises(ValueError, match=f"kernels {message}"):
            nth.infinite.ensemble(dataclasses.replace(kernels, **parts), problem, [1.0])

    refused("have NaN or infinite entries", ntk=kernels.ntk.at[0, 1].set(jnp.nan))
    refused("have NaN or infinite entries", nngp=kernels.nngp.at[4, 4].set(jnp.inf))
    refused("have dtype float32 and problem", ntk=kernels.ntk.astype(jnp.float32))
    refused(r"have shape \(5,\) and problem has m = 5", nngp=kernels.nngp[0])
    refused("must hold real numbers; got NoneType", nngp=None)

    @jax.jit
    def traced(ntk):
        changed = dataclasses.replace(kernels, ntk=ntk)
        return nth.infinite.ensemble(changed, problem, [1.0]).mean

    np.testing.assert_array_equal(traced(kernels.ntk).shape, (1, 5))
    with pytest.raises(Exception, match="kernels have NaN"):
        jax.block_until_ready(traced(jnp.full((5, 5), jnp.nan)))


def test_float32_jit_and_vmap():
    for activation in ("relu", "tanh"):
        double = nth.infinite.kernels(X, depth=2, activation=activation)
        single = nth.infinite.kernels(
            X.astype(np.float32), depth=2, activation=activation
        )
        assert single.ntk.dtype == jnp.float32
        np.testing.assert_allclose(single.ntk, double.ntk, atol=2e-6)

    @jax.jit
    def by_scale(sigma):
        return nth.infinite.kernels(X, depth=1, activation="erf", sigma_w=sigma).ntk

    several = jax.vmap(by_scale)(jnp.asarray([0.5, 1.0]))
    alone = nth.infinite.kernels(X, depth=1, activation="erf").ntk
    np.testing.assert_allclose(several[1], alone, rtol=1e-14)


def test_two_sets_of_points():
    whole = nth.infinite.kernels(X, depth=2, activation="relu", use_bias=True)
    block = nth.infinite.kernels(
        X[:1], X[1:], depth=2, activation="relu", use_bias=True
    )
    for part, every in zip(*map(jax.tree.leaves, (block, whole)), strict=True):
        np.testing.assert_allclose(part, every[:1, 1:], rtol=1e-15)


def test_errors(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    kernels = nth.infinite.kernels
    with pytest.raises(ValueError, match=r"x1 must have shape \(points, d\)"):
        kernels(X[0], depth=1)
    with pytest.raises(ValueError, match="x2 has inputs of size 2"):
        kernels(X, X[:, :2], depth=1)
    with pytest.raises(ValueError, match="x1 has NaN or infinite entries"):
        kernels(np.full((2, 2), np.nan), depth=1)
    with pytest.raises(ValueError, match="depth must be at least 0"):
        kernels(X, depth=-1)
    with pytest.raises(ValueError, match="depth must be at most 1000"):
        kernels(X, depth=10**6)
    with pytest.raises(ValueError, match=r"nodes must be odd.*got 100"):
        kernels(X, depth=1, nodes=100)
    unknown: Any = "mup"
    with pytest.raises(ValueError, match="parameterization must be one of"):
        kernels(X, depth=1, parameterization=unknown)
    with pytest.raises(ValueError, match=r"too rough or too steep.*give more nodes"):
        kernels(X, depth=1, activation=jax.nn.leaky_relu)
    with pytest.raises(ValueError, match="too rough or too steep"):
        kernels(20 * X, depth=1, activation="tanh", nodes=161)
    problem, _, formed = gaussian_problem()
    with pytest.raises(ValueError, match=r"shape \(5, 5\) and problem has m = 3"):
        nth.infinite.ensemble(
            formed, nth.Problem(problem.x_train, problem.y_train), [1.0]
        )
    labels = make_problem(3, 2, loss=nth.LogisticLoss())
    with pytest.raises(
        ValueError, match=r"infinite\.ensemble is for nth\.SquaredError"
    ):
        nth.infinite.ensemble(formed, labels, [1.0])


@pytest.mark.parametrize(
    "angles",
    [[0.0, 1e-9, 1e-6, 1e-3, 0.05, 1.0, np.pi], [0.2, 1.0, 2.0, 3.1]],
    ids=["close", "apart"],
)
def test_relu_of_close_points_keeps_all_digits(angles):
    """Cho & Saul's kernels as functions of a given angle, of order θ near 0."""
    theta = np.asarray(angles)
    x1 = jnp.asarray([[1.0, 0.0]])
    x2 = jnp.asarray(np.stack([np.cos(theta), np.sin(theta)], axis=1))
    slope = (np.pi - theta) / (2 * np.pi)
    value = np.sin(theta) / (2 * np.pi) + slope * np.cos(theta)
    got = nth.infinite.kernels(x1, x2, depth=1, activation="relu")
    np.testing.assert_allclose(got.nngp[0], value, rtol=1e-14, atol=1e-15)
    ntk = value + slope * np.cos(theta)
    np.testing.assert_allclose(got.ntk[0], ntk, rtol=1e-14, atol=1e-15)


def test_sets_with_shared_points_equal_one_set():
    """A pair that is one point twice is known as such in one set, and seen in two."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    options = {"depth": 3, "activation": "relu", "use_bias": True, "sigma_b": 0.3}
    whole = nth.infinite.kernels(x, **options)
    parts = nth.infinite.kernels(x, x[2:5], **options)
    np.testing.assert_allclose(parts.nngp, whole.nngp[:, 2:5], rtol=1e-13)
    np.testing.assert_allclose(parts.ntk, whole.ntk[:, 2:5], rtol=1e-13)


def test_relu_at_many_angles():
    """The arc-cosine kernels of Cho & Saul (2009) of two unit vectors, also where they
    are nearly parallel or orthogonal, and the polynomial for the angle changes."""
    near = 10.0 ** np.arange(-15.0, -1.0)
    middle = np.concatenate([np.pi / 2 - near, [np.pi / 2], np.pi / 2 + near])
    angles = np.concatenate([[0.0], near, np.linspace(0.01, 3.0, 1000), middle])
    first = np.array([[1.0, 0.0]])
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    options: Any = {"depth": 1, "activation": "relu"}
    found = nth.infinite.kernels(first, turned, **options)
    slope = (np.pi - angles) / (2 * np.pi)
    nngp = np.sin(angles) / (2 * np.pi) + slope * np.cos(angles)
    ntk = nngp + slope * np.cos(angles)
    np.testing.assert_allclose(found.nngp[0], nngp, atol=5e-16)
    np.testing.assert_allclose(found.ntk[0], ntk, atol=1e-15)
    single = nth.infinite.kernels(
        first.astype(np.float32), turned.astype(np.float32), **options
    )
    np.testing.assert_allclose(single.ntk[0], ntk, atol=1e-6)
