"""Second derivatives along pairs of directions against Hessians by `jax.hessian`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nth
from nth._kernels.evaluation import points_of
from nth._kernels.local_derivatives import SecondDerivatives
from nth._kernels.local_third import points_at_once
from nth._network.base import trainable

RNG = np.random.default_rng(0)
PARAMS = {"w": (3, 3), "v": (3,), "b": (4,)}
X = jnp.asarray(RNG.normal(size=(2, 3)))


def draw():
    return {name: jnp.asarray(RNG.normal(size=PARAMS[name])) for name in PARAMS}


def products(p, x):
    """A weight used twice, squares, quotients, and products of parameters."""
    h = p["w"] @ (p["w"].T @ x) * p["v"]
    return h * h / (1 + p["v"] ** 2) + jnp.outer(h, p["v"])[0] / 3.0


def kinks(p, x):
    h = jnp.maximum(p["w"] @ x, 0.1) + jnp.abs(p["v"]) * jax.nn.relu(p["v"] - x)
    low = jnp.where(h > 0.5, h**2, jnp.min(h * p["v"]))
    return jnp.sort(low * h) * jnp.clip(p["v"], -0.5, 0.5)


def loops(p, x):
    """Loops and branches are single steps, whose parameters are operands."""

    def step(h, b):
        return jnp.tanh(p["w"] @ h + b), h * b

    last, path = jax.lax.scan(step, x, p["b"])
    h = jax.lax.cond(x[0] > 0, lambda h: jnp.sin(h) * p["v"], lambda h: h**3, last)
    return h * jax.checkpoint(lambda p: jax.nn.softplus(p["w"]) @ path[1])(p)


def normalized(p, x):
    h = jnp.cumsum(p["w"] @ x) + p["b"].at[jnp.array([1, 1, 3])].get()
    h = (h - jnp.mean(h)) / jnp.sqrt(jnp.var(h) + 0.1)
    h = jax.nn.softmax(h * p["v"]) + jax.nn.gelu(h) * jax.nn.silu(p["v"])
    return jax.lax.conv_general_dilated(
        h[None, None], p["b"][None, None], (1,), "SAME"
    )[0, 0]


def linear(p, x):
    """All second derivatives are zero."""
    return -p["w"].T @ x / 2.0 + jnp.flip(p["v"]) + jnp.sum(p["b"])


def of(apply, params):
    network = nth.from_apply(apply, params)
    problem = nth.Problem(X, jnp.zeros((2, 3)))
    return points_of(trainable(network, problem, eqx.is_inexact_array))


@pytest.mark.parametrize("apply", [products, kinks, loops, normalized, linear])
@pytest.mark.parametrize("n_second", [2, 4])
def test_second_derivatives_equal_the_hessian(apply, n_second):
    points, params = of(apply, draw()), draw()
    directions = [draw() for _ in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)
    second = SecondDerivatives(points)
    assert second.is_real
    inner = nth.from_apply(apply, params)
    wrapped = eqx.filter(inner, eqx.is_inexact_array)
    moved = eqx.tree_at(lambda net: net.params, wrapped, stacked)
    theta, unravel = ravel_pytree(params)
    rows = jnp.stack([ravel_pytree(direction)[0] for direction in directions])

    @jax.jit
    def both(x):
        hessian = jax.hessian(lambda theta: apply(unravel(theta), x))(theta)
        return second(wrapped, x, moved, n_second), hessian

    for x in X:
        found, hessian = both(x)
        expected = rows @ hessian @ rows[:n_second].T
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


def test_complex_values_are_left_to_derivatives_of_gradients():
    def apply(p, x):
        return jnp.abs(jnp.fft.fft(jnp.tanh(p["w"] @ x))) * p["v"]

    points = of(apply, draw())
    assert not SecondDerivatives(points).is_real
    assert points_at_once(points, 3) == 0


def test_gradients_that_stay_factored_are_cheaper_than_second_derivatives():
    """A dense layer that acts at one position, and one that acts at many."""

    def network(positions):
        w = jnp.asarray(RNG.normal(size=(16, 16)))
        x = jnp.asarray(RNG.normal(size=(4, positions, 16)))

        def apply(w, x):
            return jnp.mean(jnp.sin(jnp.tanh(x @ w[0]) @ w[1]), axis=0)[0]

        problem = nth.Problem(x, jnp.zeros(4))
        network = nth.from_apply(apply, (w, w))
        return points_of(trainable(network, problem, eqx.is_inexact_array))

    assert points_at_once(network(1), 3) == 0
    assert points_at_once(network(40), 3) > 0
