"""Coefficients in ε against polynomial arithmetic, and jet against nested jvp."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem
from numpy.polynomial import Polynomial

import nth
from nth._dynamics import taylor_coefficients as _taylor
from nth._dynamics.series import SeriesState
from nth._dynamics.taylor_coefficients import best_coefficients, by_jet, by_jvp

K = 4
BOTH_METHODS = pytest.mark.parametrize("coefficients", [by_jet, by_jvp])
KEY = jax.random.key(0)
X = make_problem(2, 0, 8).x_train


class Attention(eqx.Module):
    """Self-attention on two tokens of size 4, a residual connection and layer norm."""

    attend: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    read: jax.Array

    def __init__(self, key):
        self.attend = eqx.nn.MultiheadAttention(2, 4, key=key)
        self.norm = eqx.nn.LayerNorm(4)
        self.read = jax.random.normal(key, (8,))

    def __call__(self, x):
        h = x.reshape(2, 4)
        h = jax.vmap(self.norm)(h + self.attend(h, h, h))
        return jnp.vdot(self.read, h.ravel())


class Scanned(eqx.Module):
    """Layers in a lax.scan, for which jet has no rule."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(w @ h), None), x, self.w)[0])


def convolution(dimensions, shape):
    layer = eqx.nn.Conv1d if dimensions == 1 else eqx.nn.Conv2d
    return eqx.nn.Sequential(
        [
            eqx.nn.Lambda(lambda x: x.reshape(1, *shape)),
            layer(1, 2, 2, key=KEY),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Lambda(lambda x: jnp.sum(x**2)),
        ]
    )


def mlp(activation, **options: Any):
    return make_network(4, 1, 8, activation=activation, use_bias=True, **options)


TAYLOR = {
    **{name: mlp(name) for name in ("tanh", "erf", "gelu", "sigmoid", "sin")},
    "vector": mlp("tanh", outputs=2),
    "conv1d": convolution(1, (8,)),
    "conv2d": convolution(2, (2, 4)),
    "attention": Attention(KEY),
    "shared": Shared(8, KEY),
    "equinox": eqx.nn.MLP(8, "scalar", 4, 2, activation=jnp.tanh, key=KEY),
}
NESTED = {
    "relu": mlp("relu"),
    "softplus": mlp("softplus"),
    "equinox relu": eqx.nn.MLP(8, 2, 4, 1, key=KEY),
    "scan": Scanned(0.4 * jax.random.normal(KEY, (2, 8, 8))),
}


def over(network):
    """f(θ) on the points X, and θ."""
    params, frozen = eqx.partition(network, eqx.is_inexact_array)

    def function(params):
        return jax.vmap(eqx.combine(params, frozen))(X)

    return function, params


def random_steps(params, seed=0):
    """u_1 … u_K, of size 0.3."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape))

    return [jax.tree.map(draw, params) for _ in range(K)]


def assert_same(actual, expected, atol=1e-12):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=atol)


@BOTH_METHODS
@pytest.mark.parametrize("number", [1, 2, K])
def test_polynomials_of_polynomials_are_exact(coefficients, number):
    """(x³ − 2xy + y²/2)(ε) along two polynomials, against numpy.polynomial."""
    curves = np.random.default_rng(1).normal(size=(2, number + 1))
    x, y = (Polynomial(curve) for curve in curves)
    expected = (x**3 - 2 * x * y + y**2 / 2).coef[: number + 1]
    base, *steps = [{"x": jnp.asarray(a), "y": jnp.asarray(b)} for a, b in curves.T]

    def function(at):
        return at["x"] ** 3 - 2 * at["x"] * at["y"] + at["y"] ** 2 / 2

    assert_same(coefficients(function, base, steps), expected)


@BOTH_METHODS
def test_the_sine_of_a_line_has_its_taylor_coefficients(coefficients):
    """[sin(a + ε b)]_k = sin(a + kπ/2) bᵏ/k!, with each factorial once."""
    a, b = 0.7, -1.3
    steps = [jnp.asarray(b), *[jnp.asarray(0.0)] * (K - 1)]
    factorials = np.cumprod([1, 1, 2, 3, 4])
    expected = [np.sin(a + k * np.pi / 2) * b**k / factorials[k] for k in range(K + 1)]
    assert_same(coefficients(jnp.sin, jnp.asarray(a), steps), expected)


@pytest.mark.parametrize("name", TAYLOR)
def test_jet_is_taken_and_equals_nested_jvp(name):
    function, params = over(TAYLOR[name])
    assert best_coefficients(function, params) is by_jet

    @jax.jit
    def both(params, steps):
        return by_jet(function, params, steps), by_jvp(function, params, steps)

    deep = name in ("attention", "shared")  # 3 steps halve the compile time of by_jvp
    jet, jvp = both(params, random_steps(params)[: K - deep])
    assert_same(jet, jvp)
    assert all(np.max(np.abs(k)) > 1e-4 for k in jet)


@BOTH_METHODS
def test_fewer_steps_are_the_first_coefficients(coefficients):
    """[f(θ_ε)]_k does not depend on u_{k+1}."""
    function, params = over(TAYLOR["shared"])
    steps = random_steps(params)
    whole = jax.jit(lambda *u: coefficients(function, params, u))(*steps[:3])
    part = jax.jit(lambda *u: coefficients(function, params, u))(*steps[:2])
    assert_same(part, whole[:3])


@pytest.mark.parametrize("name", NESTED)
def test_nested_jvp_is_used_where_jet_has_no_proved_rule(name):
    """by_jvp is chosen, and equals central differences along the curve in ε."""
    function, params = over(NESTED[name])
    assert best_coefficients(function, params) is by_jvp
    steps = random_steps(params)[:2]
    zeroth, first, second = jax.jit(lambda *u: by_jvp(function, params, u))(*steps)

    @jax.jit
    def at(eps):
        def point(leaf, u1, u2):
            return leaf + eps * u1 + eps**2 * u2

        return function(jax.tree.map(point, params, *steps))

    h = 1e-3
    above, below = at(h), at(-h)
    np.testing.assert_allclose(zeroth, at(0.0), atol=1e-12)
    np.testing.assert_allclose(first, (above - below) / (2 * h), atol=1e-5)
    np.testing.assert_allclose(
        second, (above - 2 * zeroth + below) / (2 * h**2), atol=1e-5
    )


@jax.custom_jvp
def straight_through(x):
    """round(x), with the derivative of x."""
    return jnp.round(x)


straight_through.defjvps(lambda tangent, value, x: tangent)


@pytest.mark.parametrize(
    "quantize",
    [straight_through, jax.jit(straight_through), jax.vmap(straight_through)],
    ids=["plain", "jit", "vmap"],
)
def test_custom_derivatives_are_respected(quantize):
    """By the custom rule, the value along any curve is round(x₀) + (x − x₀)."""
    base = {"w": jnp.array([0.4, 1.7, -2.2]), "a": jnp.array([1.0, -0.5, 0.3])}

    def function(at):
        return jnp.vdot(at["a"], jnp.tanh(quantize(at["w"])))

    def by_the_custom_rule(at):
        moved = jnp.round(base["w"]) + (at["w"] - base["w"])
        return jnp.vdot(at["a"], jnp.tanh(moved))

    coefficients = best_coefficients(function, base)
    steps = random_steps(base)
    actual = coefficients(function, base, steps)
    assert_same(actual, by_jet(by_the_custom_rule, base, steps))
    value, slope = jax.jvp(function, (base,), (steps[0],))
    assert_same(actual[:2], [value, slope])
    ignored = jnp.vdot(steps[0]["a"], jnp.tanh(jnp.round(base["w"])))
    assert abs(slope - ignored) > 1e-2  # the derivative without the custom rule


def test_squares_of_negative_numbers():
    """The exponents 2 and 2.0 give the same coefficients."""
    base = jnp.array([-1.5, -0.2, 2.0])
    steps = random_steps(base)
    coefficients = best_coefficients(lambda x: x**2.0, base)
    assert_same(
        coefficients(lambda x: x**2.0, base, steps), by_jet(jnp.square, base, steps)
    )


def test_predictions_are_equal_without_jet(monkeypatch):
    """Predictions do not depend on the experimental module."""
    problem = nth.Problem(X, jnp.ones(2))
    network = TAYLOR["tanh"]

    def rates():
        hierarchy = nth.MatrixFreeHierarchy(network, problem, order=3)
        state = SeriesState(None, tuple(random_steps(hierarchy.params)[:2]))
        rate = eqx.filter_jit(hierarchy.vector_field)(jnp.zeros(()), state, None)
        return hierarchy.coefficients, (rate, hierarchy.outputs(state))

    taken, with_jet = rates()
    monkeypatch.setattr(_taylor, "jet", None)
    fallback, without = rates()
    assert (taken, fallback) == (by_jet, by_jvp)
    assert_same(jax.tree.leaves(without), jax.tree.leaves(with_jet))
    with pytest.raises(NotImplementedError, match=r"no jax\.experimental\.jet"):
        by_jet(jnp.sin, jnp.zeros(()), [jnp.ones(())])


@BOTH_METHODS
def test_derivatives_of_one_coefficient_are_all_jacobian_coefficients(coefficients):
    """∂[f(θ_ε)]_k/∂u_j = [J(θ_ε)]_{k−j}, so a single reverse pass suffices."""
    base = {"w": jnp.array([[0.3, -1.0], [0.8, 0.5]]), "a": jnp.array([1.2, -0.7])}
    steps = random_steps(base)[:3]

    def f(at):
        return jnp.tanh(at["w"] @ jnp.tanh(at["w"] @ at["a"]))  # uses w twice

    @jax.jit
    def both(base, steps):
        def last(base, steps):
            return coefficients(f, base, steps)[-1]

        at_base, at_steps = jax.jacrev(last, argnums=(0, 1))(base, steps)
        return [at_base, *at_steps], by_jacobian(base, steps)

    def by_jacobian(base, steps):
        columns = [
            by_jvp(lambda at, name=name: jax.jacfwd(f)(at)[name], base, steps)
            for name in base
        ]
        return [dict(zip(base, k, strict=True)) for k in zip(*columns, strict=True)]

    pulled, jacobians = both(base, steps)
    for j, by_step in enumerate(pulled):  # u_0 is θ₀
        for name, block in by_step.items():
            np.testing.assert_allclose(block, jacobians[3 - j][name], atol=1e-12)
