"""Helpers of the tests of dynamics: states, rates, and integration by SciPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

NOW = jnp.zeros(())


def random_state(hierarchy, size=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(size * rng.normal(size=leaf.shape)),
        hierarchy.initial_state(),
    )


def rates(hierarchy, state):
    return eqx.filter_jit(hierarchy.vector_field)(NOW, state, None)


def assert_trees_close(actual, expected, atol):
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=atol)


def flow_to(dynamics, t):
    """f̃(t) and the state, integrated by SciPy."""
    start, unravel = ravel_pytree(dynamics.initial_state())

    @eqx.filter_jit
    def field(dynamics, state):
        return ravel_pytree(dynamics.vector_field(NOW, unravel(state), None))[0]

    solved = solve_ivp(
        lambda t, y: field(dynamics, y), (0, t), start, "DOP853", rtol=1e-10, atol=1e-12
    )
    state = unravel(jnp.asarray(solved.y[:, -1]))
    return np.asarray(dynamics.outputs(state)), state
