"""Eq. 29: the NTK after a step of gradient descent, by derivatives along gradients that
are held fixed."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth

KEY = jax.random.key(3)


class Shared(eqx.Module):
    """A network that is no chain of layers: one weight, used twice."""

    weight: jax.Array

    def __call__(self, x):
        return jnp.sum(jnp.tanh(self.weight @ jnp.tanh(self.weight @ x)))


class Flat:
    """f and K⁽²⁾ of a network as functions of a flat θ = √M⁻¹(parameters), with
    derivatives of JAX and nothing of nth."""

    def __init__(self, network, problem, rates=None):
        theta, unravel = ravel_pytree(network)
        roots = jnp.ones_like(theta)
        if rates is not None:
            roots = jnp.sqrt(ravel_pytree(rates)[0])
        self.theta, self.problem = theta / roots, problem
        self.unravel = lambda theta: unravel(theta * roots)

    def outputs(self, theta):
        return jax.vmap(self.unravel(theta))(self.problem.x).ravel()

    def ntk(self, theta):
        jacobian = jax.jacrev(self.outputs)(theta)
        return jacobian @ jacobian[: self.slots].T

    def loss(self, theta):
        problem, network = self.problem, self.unravel(theta)
        return problem.loss(jax.vmap(network)(problem.x_train), problem.y_train)

    @property
    def slots(self):
        return self.problem.y_train.size

    def kernels(self):
        """𝒦⁽²⁾ … 𝒦⁽⁴⁾, from whole derivatives of K⁽²⁾."""
        gradients = jax.jacrev(self.outputs)(self.theta)[: self.slots]
        first = jax.jacfwd(self.ntk)
        whole = self.ntk(self.theta), first(self.theta)
        second = jax.jacfwd(first)(self.theta)
        return [
            whole[0],
            whole[1] @ gradients.T,
            jnp.einsum("abPQ,cP,dQ->abcd", second, gradients, gradients),
        ]

    def along(self, rate):
        """u ↦ K⁽²⁾ at a part u of the step."""
        direction = -rate * jax.grad(self.loss)(self.theta)
        return lambda u: self.ntk(self.theta + u * direction)


def derivatives(function, degree):
    functions = [function]
    for _ in range(degree):
        functions.append(jax.jacfwd(functions[-1]))
    return functions


CHAIN = make_network(3, 1, outputs=2, use_bias=True)
RATES = eqx.tree_at(lambda n: n.weights[0], jax.tree.map(jnp.ones_like, CHAIN), 0.3)
RATES = jax.tree.map(lambda rate, leaf: rate + jnp.zeros_like(leaf), RATES, CHAIN)
SHARED = Shared(jax.random.normal(KEY, (3, 3)))
CASES = {
    "chain": (CHAIN, make_problem(2, 1, outputs=2), RATES),
    "shared weight": (SHARED, make_problem(3, 1), None),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    network, problem, rates = CASES[request.param]
    expanded = nth.step_kernels(network, problem, 0.5, order=4, learning_rates=rates)
    return expanded, Flat(network, problem, rates), CASES[request.param]


def test_kernels_are_derivatives_along_gradients_held_fixed(case):
    expanded, flat, (network, problem, rates) = case
    for r, expected in enumerate(jax.jit(flat.kernels)(), 2):
        actual = expanded[r].reshape(expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    own = nth.kernels(network, problem, order=4, learning_rates=rates)
    np.testing.assert_allclose(expanded[3], own[3], rtol=0, atol=1e-12)
    assert expanded[4].shape == own[4].shape
    assert np.max(np.abs(expanded[4] - own[4])) > 1e-2


def test_the_remainder_is_that_of_the_taylor_expansion(case):
    """Ω = ∫₀¹ (1 − u)²/2 φ⁽³⁾(u) du with φ(u) the NTK at a part u of the step, and
    φ⁽ʲ⁾(0)/j! are the terms."""
    expanded, flat, _ = case
    shape = flat.ntk(flat.theta).shape
    functions = derivatives(flat.along(0.5), 3)
    for j, term in enumerate(expanded.terms):
        expected = jax.jit(functions[j])(0.0) / math.factorial(j)
        np.testing.assert_allclose(term.reshape(shape), expected, rtol=0, atol=1e-12)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    nodes, weights = (nodes + 1) / 2, weights / 2
    third = jax.jit(jax.vmap(functions[3]))(nodes)
    remainder = np.einsum("u,uab->ab", weights * (1 - nodes) ** 2 / 2, third)
    assert np.max(np.abs(remainder)) > 1e-3
    np.testing.assert_allclose(
        expanded.remainder.reshape(shape), remainder, rtol=0, atol=1e-10
    )


def test_terms_and_remainder_are_the_kernel_of_the_trained_network(case):
    expanded, _, (network, problem, rates) = case
    path = nth.kernel_along_steps(
        network, problem, [1], optax.sgd(0.5), learning_rates=rates
    )
    total = expanded.terms.sum(axis=0) + expanded.remainder
    np.testing.assert_allclose(total, path.ntk[0], rtol=0, atol=1e-12)


def test_the_remainder_is_of_order_p_minus_one_in_the_learning_rate():
    network, problem, _ = CASES["shared weight"]

    @jax.jit
    @jax.vmap
    def remainders(rate):
        return [
            nth.step_kernels(network, problem, rate, order=p).remainder
            for p in (2, 3, 4)
        ]

    rates = jnp.array([4e-3, 2e-3])
    for p, remainder in zip((2, 3, 4), remainders(rates), strict=True):
        large, small = jnp.linalg.norm(remainder.reshape(2, -1), axis=1)
        np.testing.assert_allclose(jnp.log2(large / small), p - 1, atol=0.02)


def test_float32_is_kept_and_agrees_with_float64(case):
    expanded, _, (network, problem, rates) = case
    network, problem, rates = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf,
        (network, problem, rates),
    )
    small = nth.step_kernels(network, problem, 0.5, order=3, learning_rates=rates)
    for r in (2, 3):
        assert small[r].dtype == jnp.float32
        np.testing.assert_allclose(small[r], expanded[r], rtol=0, atol=1e-4)
    np.testing.assert_allclose(small.ntk, expanded.ntk, rtol=0, atol=1e-4)


def test_kernels_beyond_the_order_raise(case):
    with pytest.raises(IndexError, match="up to r = 4; got r = 5"):
        case[0][5]


def test_a_step_that_overflows_raises():
    network, (_, problem, _) = (
        make_network(3, 1, activation="linear"),
        CASES["shared weight"],
    )
    with pytest.raises(ValueError, match="learning_rate is so large that the step"):
        nth.step_kernels(network, problem, 1e200, order=2)


def test_kernels_too_large_for_memory_raise():
    problem = make_problem(400, 1, outputs=2)
    with pytest.raises(ValueError, match="order: kernels of a step up to r = 6"):
        nth.step_kernels(CHAIN, problem, 0.1, order=6)
