"""Gradients in factored form against the Jacobian by `jax.jacrev`.

Each network is tested with factored gradients, with full ones, and by default.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_problem
from jax.flatten_util import ravel_pytree

import nth
from nth._kernels import assembly, factored_gradients
from nth._kernels.evaluation import points_of
from nth._network.base import trainable

RNG = np.random.default_rng(0)


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape))


def residual(p, x):
    """Dense layers of several widths, a skip connection and normalization."""
    h = jnp.tanh(p["first"] @ x + p["bias"])
    z = (h - jnp.mean(h)) / jnp.sqrt(jnp.var(h) + 0.1) * p["scale"] + p["shift"]
    h = h + p["down"] @ jnp.sin(p["up"] @ z)
    return h @ p["last"] / 2.0


RESIDUAL: Any = {
    "first": draw(4, 3),
    "bias": draw(4),
    "scale": draw(4),
    "shift": draw(4),
    "up": draw(6, 4),
    "down": draw(4, 6),
    "last": draw(4, 2),
}


def attention(p, x):
    tokens = jnp.tanh(x[:, None] * p["embed"][None])
    q, k, v = (jnp.einsum("td,hde->the", tokens, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k), axis=-1)
    mixed = jnp.einsum("hts,she->the", weights, v)
    return jnp.mean(jnp.einsum("the,hed->td", mixed, p["o"]), axis=0)[:2]


ATTENTION: Any = {
    "embed": draw(4),
    "q": draw(2, 4, 3),
    "k": draw(2, 4, 3),
    "v": draw(2, 4, 3),
    "o": draw(2, 3, 4),
}


def convolutions(p, x):
    """Strides, dilations, asymmetric padding, groups, and channels last."""
    z = jnp.tanh(
        jax.lax.conv_general_dilated(
            x[None], p["first"], (2, 1), ((1, 0), (0, 2)), rhs_dilation=(1, 2)
        )
    )
    z = jax.lax.conv_general_dilated(
        z,
        p["grouped"],
        (1, 1),
        ((1, 1), (0, 1)),
        lhs_dilation=(1, 2),
        feature_group_count=2,
    )
    z = jax.lax.conv_general_dilated(
        jnp.moveaxis(jnp.sin(z), 1, 3),
        jnp.flip(p["last"], 0),
        (1, 1),
        ((1, 0), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.mean(z[0], axis=(0, 1))


CONVOLUTIONS: Any = {
    "first": draw(4, 1, 2, 2),
    "grouped": draw(6, 2, 3, 2),
    "last": draw(2, 1, 6, 2),
}


def lookups(p, x):
    clipped = p["clipped"].at[x + 2].get(mode="clip")
    dropped = p["dropped"].at[x + 3].get(mode="fill", fill_value=0.5)
    rows = p["table"][x] * clipped + dropped
    return jnp.tanh(rows).mean(axis=0) @ p["last"]


LOOKUPS: Any = {
    "table": draw(5, 4),
    "clipped": draw(5, 4),
    "dropped": draw(5, 4),
    "last": draw(4, 2),
}
TOKENS = jnp.asarray([[0, 1, 1], [3, 4, 4], [2, 2, 0], [1, 3, 0]])


def views(p, x):
    """Weights that are transposed, reshaped, negated and scaled before their use."""
    h = jnp.tanh((0.5 * p["first"]).T @ x)
    h = jnp.sin(jnp.float64(0.7) * (-p["second"]).reshape(5, 4) @ h)
    return p["last"].T @ h


VIEWS: Any = {"first": draw(3, 4), "second": draw(2, 10), "last": draw(5, 2)}


@jax.jit
def layer(w, x):
    return jnp.tanh(w @ x)


def twice(p, x):
    """Weights used twice, in both operands of a product, and elementwise."""
    h = layer(p["square"], layer(p["square"], x))
    gram = p["gram"] @ p["gram"].T
    return gram @ h[:2] + (p["wave"] ** 2) @ h + p["scan"][0] @ layer(p["plain"], h)


TWICE: Any = {
    "square": draw(3, 3),
    "gram": draw(2, 3),
    "wave": draw(2, 3),
    "scan": draw(2, 2, 4),
    "plain": draw(4, 3),
}

# Function, parameters, points, and the parameters whose uses are recognized.
CASES = {
    "residual": (residual, RESIDUAL, draw(4, 3), {"first", "up", "down", "last"}),
    "attention": (attention, ATTENTION, draw(4, 3), {"q", "k", "v", "o"}),
    "convolutions": (
        convolutions,
        CONVOLUTIONS,
        draw(4, 1, 4, 5),
        {"first", "grouped", "last"},
    ),
    "lookups": (lookups, LOOKUPS, TOKENS, set(LOOKUPS)),
    "views": (views, VIEWS, draw(4, 3), {"first", "second", "last"}),
    "twice": (twice, TWICE, draw(4, 3), {"plain"}),
}


def jacobian(apply, params, x):
    theta, unravel = ravel_pytree(params)

    def outputs(theta):
        return jax.vmap(lambda point: apply(unravel(theta), point))(x).ravel()

    return jax.jit(jax.jacrev(outputs))(theta)


@functools.cache
def jacobian_of(name):
    apply, params, x, _ = CASES[name]
    return jacobian(apply, params, x)


def rates_for(params, scalar: bool):
    """Learning rates of each parameter: numbers, or one for each entry."""

    def rate(leaf):
        draws = np.random.default_rng(leaf.size).uniform(0.5, 2.0, leaf.shape)
        return jnp.asarray(draws.flat[0] if scalar else draws)

    return jax.tree.map(rate, params)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kept", [True, False])
def test_kernel_equals_the_product_of_jacobians(name, kept, monkeypatch):
    apply, params, x, _ = CASES[name]
    monkeypatch.setattr(factored_gradients, "_pairs_are_cheaper", lambda *_: kept)
    network = nth.from_apply(apply, params)
    problem = nth.Problem(x[:3], jnp.zeros((3, 2)), x[3:])
    J = jacobian_of(name)
    for rates in (None, rates_for(params, True), rates_for(params, False)):
        prefix = rates and eqx.tree_at(lambda net: net.params, network, rates)
        whole = nth.kernels(network, problem, order=2, learning_rates=prefix)[2]
        M = 1.0
        if rates is not None:
            full = jax.tree.map(
                lambda r, p: jnp.broadcast_to(r, p.shape), rates, params
            )
            M = ravel_pytree(full)[0][None]
        expected = (J * M @ J[:6].T).reshape(whole.shape)
        np.testing.assert_allclose(whole, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_uses_are_recognized(name):
    """Parameters used twice or in another way have full gradients."""
    apply, params, x, known = CASES[name]
    network = nth.from_apply(apply, params)
    problem = nth.Problem(x, jnp.zeros((4, 2)))
    points = points_of(trainable(network, problem, eqx.is_inexact_array))
    gradients = factored_gradients.GradientFunction(points, 4)
    names = sorted(params)
    assert {names[use.leaf] for use in gradients.uses} == known


@pytest.mark.parametrize("kept", [True, False])
def test_results_do_not_depend_on_blocks_and_rows(kept, monkeypatch):
    apply, params, x, _ = CASES["attention"]
    monkeypatch.setattr(factored_gradients, "_pairs_are_cheaper", lambda *_: kept)
    network = nth.from_apply(apply, params)
    x = jnp.concatenate([x, 2 * x, -x])
    problem = nth.Problem(x[:9], jnp.zeros((9, 2)), x[9:])
    whole = nth.kernels(network, problem, order=2)[2]
    blocks = nth.kernels(network, problem, order=2, block_size=4)[2]
    np.testing.assert_allclose(blocks, whole, rtol=1e-12, atol=1e-14)
    part = nth.kernels(network, problem, order=2, rows=[10, 3])[2]
    np.testing.assert_allclose(part, whole[jnp.array([10, 3])], rtol=1e-12, atol=1e-14)
    monkeypatch.setattr("nth._kernels.jacobian._TILE_SLOTS", 5)
    tiled = nth.kernels(network, problem, order=2)[2]
    np.testing.assert_allclose(tiled, whole, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr("nth._kernels.jacobian._BLOCK_BYTES", 20_000)
    small = nth.kernels(network, problem, order=2)[2]
    np.testing.assert_allclose(small, whole, rtol=1e-12, atol=1e-14)


@functools.cache
def third_of(name):
    """The derivatives of J M Jᵀ along M ∇f_c, with the rates of the next test."""
    apply, params, x, _ = CASES[name]
    rates = rates_for(params, scalar=name != "residual")
    full = jax.tree.map(lambda r, p: jnp.broadcast_to(r, p.shape), rates, params)
    M = ravel_pytree(full)[0]
    theta, unravel = ravel_pytree(params)

    def ntk(theta):
        J = jacobian(apply, unravel(theta), x)
        return J * M[None] @ J[:6].T

    def along(u):
        return jax.jvp(ntk, (theta,), (u,))[1]

    return jax.jit(jax.vmap(along, out_axes=2))(jacobian_of(name)[:6] * M[None])


@pytest.mark.parametrize(
    ("name", "together"),
    [
        *((name, 0) for name in ("attention", "convolutions", "lookups", "twice")),
        *((name, 2) for name in CASES),
    ],
)
def test_third_kernel_is_the_derivative_of_the_second(name, together, monkeypatch):
    """K(3)[…, c] is the derivative of J M Jᵀ along M ∇f_c.

    From derivatives of gradients, and from second derivatives of two points at once.
    """
    monkeypatch.setattr(assembly, "points_at_once", lambda *_: together)
    # Not by a function that is compiled already.
    monkeypatch.setattr(assembly, "_is_quick", lambda points, order: False)
    apply, params, x, _ = CASES[name]
    kept = name in ("attention", "lookups")
    monkeypatch.setattr(factored_gradients, "_pairs_are_cheaper", lambda *_: kept)
    network = nth.from_apply(apply, params)
    problem = nth.Problem(x[:3], jnp.zeros((3, 2)), x[3:])
    rates = rates_for(params, scalar=name != "residual")
    prefix = eqx.tree_at(lambda net: net.params, network, rates)
    options: Any = {"order": 3, "learning_rates": prefix}
    whole = nth.kernels(network, problem, **options)[3]
    expected = third_of(name).reshape(whole.shape)
    np.testing.assert_allclose(whole, expected, rtol=1e-10, atol=1e-11)
    parts = nth.kernels(network, problem, block_size=2, **options)[3]
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-13)
    rows = nth.kernels(network, problem, rows=[3, 1], **options)[3]
    np.testing.assert_allclose(rows, whole[jnp.array([3, 1])], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "together"), [("attention", 2), ("residual", 1)])
def test_fourth_kernel_lifts_second_derivatives(name, together, monkeypatch):
    """K(4) = D D (J Jᵀ), with the directions ∇f_c(θ) differentiated too."""
    monkeypatch.setattr(assembly, "points_at_once", lambda *_: together)
    apply, params, x, _ = CASES[name]
    problem = nth.Problem(x[:2], jnp.zeros((2, 2)), x[2:3])
    network = nth.from_apply(apply, params)
    fourth = nth.kernels(network, problem, order=4)[4]
    theta, unravel = ravel_pytree(params)

    def gradients(theta):
        return jacobian(apply, unravel(theta), x[:3])

    def ntk(theta):
        return gradients(theta) @ gradients(theta)[:4].T

    def lifted(tensor):
        def along(theta, u):
            return jax.jvp(tensor, (theta,), (u,))[1]

        over = jax.vmap(along, (None, 0), -1)
        return lambda theta: over(theta, gradients(theta)[:4])

    expected = jax.jit(lifted(lifted(ntk)))(theta).reshape(fourth.shape)
    np.testing.assert_allclose(fourth, expected, rtol=1e-9, atol=1e-10)


def test_kernels_of_large_networks_lift_the_outputs(monkeypatch):
    """If the gradients of all points do not fit in a block."""
    apply, params, x, _ = CASES["residual"]
    network = nth.from_apply(apply, params)
    problem = nth.Problem(x[:3], jnp.zeros((3, 2)))
    monkeypatch.setattr(assembly, "points_at_once", lambda *_: 0)
    # Not by a function that is compiled already.
    monkeypatch.setattr(assembly, "_is_quick", lambda points, order: False)
    whole = nth.kernels(network, problem, order=3)[3]
    monkeypatch.setattr("nth._kernels.third_products._BLOCK_BYTES", 0)
    lifted = nth.kernels(network, problem, order=3)[3]
    np.testing.assert_allclose(lifted, whole, rtol=1e-10, atol=1e-12)


def test_frozen_parameters_have_no_gradient():
    network = Shared(3, jax.random.key(0))
    spec = eqx.tree_at(lambda net: net.w, jax.tree.map(lambda _: True, network), False)
    problem = make_problem()
    kernel = nth.kernels(network, problem, order=2, filter_spec=spec)[2]

    def apply(v, x):
        return eqx.tree_at(lambda net: net.v, network, v)(x)

    J = jacobian(apply, network.v, problem.x)
    np.testing.assert_allclose(kernel, J @ J[:4].T, rtol=1e-10)


def test_float32_is_kept():
    apply, params, x, _ = CASES["convolutions"]
    single, x = (jax.tree.map(lambda a: a.astype("f4"), tree) for tree in (params, x))
    network = nth.from_apply(apply, single)
    problem = nth.Problem(x[:3], jnp.zeros((3, 2), "f4"), x[3:])
    kernel = nth.kernels(network, problem, order=2)[2]
    assert kernel.dtype == jnp.float32
    J = jacobian_of("convolutions").reshape(4, 2, -1)
    expected = jnp.einsum("acp,bdp->acbd", J, J[:3])
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4)
