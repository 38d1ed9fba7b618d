"""The matrix-free hierarchy under jit, vmap and grad, and in float32."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from vector_fields import NOW, assert_trees_close, flow_to, random_state, rates

import nth

TIGHT = diffrax.PIDController(rtol=1e-9, atol=1e-11)
KEY = jax.random.key(0)
SMALL, NETWORK = make_problem(3, 1), make_network(4, 1)
TS = np.array([0.5, 2.0])


def solve(network, problem, ts=TS, method: Any = "matrix-free"):
    return nth.solve(
        network, problem, ts, order=3, method=method, stepsize_controller=TIGHT
    )


def test_jit_and_vmap_over_keys_equal_a_loop():
    def solved_from(key):
        solution = solve(nth.MLP(3, 4, 1, key=key), SMALL)
        return solution.train, solution.test, solution.state

    keys = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(solved_from))(keys)
    for i, key in enumerate(keys):
        batched = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_trees_close(batched, solved_from(key), 1e-9)
    assert np.max(np.abs(together[1][0] - together[1][1])) > 1e-2


def central_difference(function, at, step=1e-4):
    return (function(at + step) - function(at - step)) / (2 * step)


def test_gradient_of_a_solve_with_respect_to_a_weight_scale():
    """At level 2; higher levels also differentiate jet, as in the next test."""

    def hierarchy(scale):
        return nth.MatrixFreeHierarchy(
            make_network(4, 1, sigma_w=scale), SMALL, order=2
        )

    def total(scale):
        return jnp.sum(nth.integrate(hierarchy(scale), TS[-1:]).test)

    expected = central_difference(
        lambda scale: np.sum(flow_to(hierarchy(scale), TS[-1])[0][3:]), 1.2
    )
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(jax.grad(total)(1.2), expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_gradient_of_a_rate_with_respect_to_a_weight_scale(activation):
    """A derivative of jet, and of nested jvp."""

    @jax.jit
    def total(scale):
        network = make_network(4, 1, sigma_w=scale, activation=activation)
        hierarchy = nth.MatrixFreeHierarchy(network, SMALL, order=3)
        rate = hierarchy.vector_field(NOW, random_state(hierarchy), None)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(rate))

    expected = central_difference(total, 1.2)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(jax.grad(total)(1.2), expected, rtol=1e-6)


def as_float32(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree
    )


def test_float32_is_kept_and_agrees_with_float64():
    solution = nth.solve(
        as_float32(NETWORK), as_float32(SMALL), TS[-1:], order=2, method="matrix-free"
    )
    arrays = [
        solution.ts,
        solution.train,
        solution.test,
        solution.loss,
        *jax.tree.leaves(solution.state),
    ]
    assert {array.dtype for array in arrays} == {jnp.dtype("float32")}
    expected, _ = flow_to(nth.MatrixFreeHierarchy(NETWORK, SMALL, order=2), TS[-1])
    actual = jnp.concatenate([solution.train[0], solution.test[0]])
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_float32_in_blocks_agrees_with_float64(activation):
    network = make_network(4, 1, activation=activation)
    hierarchy = nth.MatrixFreeHierarchy(network, SMALL, order=3, block_size=1)
    state = random_state(hierarchy)
    small = nth.MatrixFreeHierarchy(
        as_float32(network), as_float32(SMALL), order=3, block_size=1
    )
    actual = rates(small, as_float32(state)), small.outputs(as_float32(state))
    expected = rates(hierarchy, state), hierarchy.outputs(state)
    leaves = jax.tree.leaves(actual)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    for a, b in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
