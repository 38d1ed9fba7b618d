"""Coefficients in ε against polynomial arithmetic, and one way of forming them
against the other."""

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
WAYS = pytest.mark.parametrize("way", [by_jet, by_jvp])
KEY = jax.random.key(0)
X = make_problem(2, 0, 8).x_train


class Attention(eqx.Module):
    """Two tokens of four numbers: self-attention, a residual, a layer norm."""

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
    """Layers by lax.scan, for which jet has no rule."""

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
    """u_1 … u_K of the size of 0.3."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape))

    return [jax.tree.map(draw, params) for _ in range(K)]


def assert_same(ours, expected, atol=1e-12):
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=atol)


@WAYS
@pytest.mark.parametrize("number", [1, 2, K])
def test_polynomials_of_polynomials(way, number):
    """(x³ − 2xy + y²/2)(ε) along two polynomials, as numpy.polynomial has it."""
    curves = np.random.default_rng(1).normal(size=(2, number + 1))
    x, y = (Polynomial(curve) for curve in curves)
    expected = (x**3 - 2 * x * y + y**2 / 2).coef[: number + 1]
    base, *steps = [{"x": jnp.asarray(a), "y": jnp.asarray(b)} for a, b in curves.T]

    def function(at):
        return at["x"] ** 3 - 2 * at["x"] * at["y"] + at["y"] ** 2 / 2

    assert_same(way(function, base, steps), expected)


@WAYS
def test_the_sine_of_a_line(way):
    """[sin(a + ε b)]_k = sin(a + kπ/2) bᵏ/k!: no factorial is lost, none is twice."""
    a, b = 0.7, -1.3
    steps = [jnp.asarray(b), *[jnp.asarray(0.0)] * (K - 1)]
    factorials = np.cumprod([1, 1, 2, 3, 4])
    expected = [np.sin(a + k * np.pi / 2) * b**k / factorials[k] for k in range(K + 1)]
    assert_same(way(jnp.sin, jnp.asarray(a), steps), expected)


@pytest.mark.parametrize("name", TAYLOR)
def test_jet_is_taken_and_equals_nested_jvp(name):
    function, params = over(TAYLOR[name])
    assert best_coefficients(function, params) is by_jet

    @jax.jit
    def both(params, steps):
        return by_jet(function, params, steps), by_jvp(function, params, steps)

    deep = name in ("attention", "shared")  # to compile by_jvp, half as long with 3
    one, other = both(params, random_steps(params)[: K - deep])
    assert_same(one, other)
    assert all(np.max(np.abs(k)) > 1e-4 for k in one)  # and it is about something


@WAYS
def test_fewer_steps_are_the_first_coefficients(way):
    """[f(θ_ε)]_k knows nothing of u_{k+1}."""
    function, params = over(TAYLOR["shared"])
    steps = random_steps(params)
    whole = jax.jit(lambda *u: way(function, params, u))(*steps[:3])
    part = jax.jit(lambda *u: way(function, params, u))(*steps[:2])
    assert_same(part, whole[:3])


@pytest.mark.parametrize("name", NESTED)
def test_nested_jvp_where_jet_does_not_serve(name):
    """Chosen, and equal to central differences along the curve in ε."""
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
    """round(x), which is to be differentiated as if it were x."""
    return jnp.round(x)


straight_through.defjvps(lambda tangent, value, x: tangent)


@pytest.mark.parametrize(
    "quantise",
    [straight_through, jax.jit(straight_through), jax.vmap(straight_through)],
    ids=["plain", "jit", "vmap"],
)
def test_a_derivative_of_its_own_is_obeyed(quantise):
    """Along any curve the rule says round(x₀) + (x − x₀)."""
    base = {"w": jnp.array([0.4, 1.7, -2.2]), "a": jnp.array([1.0, -0.5, 0.3])}

    def function(at):
        return jnp.vdot(at["a"], jnp.tanh(quantise(at["w"])))

    def as_the_rule_says(at):
        moved = jnp.round(base["w"]) + (at["w"] - base["w"])
        return jnp.vdot(at["a"], jnp.tanh(moved))

    way = best_coefficients(function, base)
    steps = random_steps(base)
    ours = way(function, base, steps)
    assert_same(ours, by_jet(as_the_rule_says, base, steps))
    value, slope = jax.jvp(function, (base,), (steps[0],))
    assert_same(ours[:2], [value, slope])
    ignored = jnp.vdot(steps[0]["a"], jnp.tanh(jnp.round(base["w"])))
    assert abs(slope - ignored) > 1e-2  # what the derivative of round itself would give


def test_powers_of_what_is_negative():
    """A square is a square, whether 2 or 2.0 is its exponent."""
    base = jnp.array([-1.5, -0.2, 2.0])
    steps = random_steps(base)
    way = best_coefficients(lambda x: x**2.0, base)
    assert_same(way(lambda x: x**2.0, base, steps), by_jet(jnp.square, base, steps))


def test_without_jet(monkeypatch):
    """An experimental module may go: the predictions stay."""
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


@WAYS
def test_one_coefficient_holds_the_jacobians_of_all(way):
    """∂[f(θ_ε)]_k/∂u_j = [J(θ_ε)]_{k−j}: what one reverse pass rests on."""
    base = {"w": jnp.array([[0.3, -1.0], [0.8, 0.5]]), "a": jnp.array([1.2, -0.7])}
    steps = random_steps(base)[:3]

    def f(at):
        return jnp.tanh(at["w"] @ jnp.tanh(at["w"] @ at["a"]))  # w twice

    @jax.jit
    def both(base, steps):
        def last(base, steps):
            return way(f, base, steps)[-1]

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
