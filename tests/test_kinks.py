"""Kinks: relaxed tolerances at kinks, and no change elsewhere."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nth
from nth._integrate.kinks import KinkController


@pytest.fixture(autouse=True, params=[True, False], ids=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param):
        yield jnp.float64 if request.param else jnp.float32


def controllers(dynamics, dtype, loosest=2e-4):
    """The default controller, and the same with relaxation at kinks."""
    rtol, atol = (1e-7, 1e-9) if dtype == jnp.float64 else (1e-5, 1e-6)
    pid = diffrax.PIDController(rtol=rtol, atol=atol, norm=dynamics.error_norm)
    return pid, KinkController(pid, loosest)


def points(n, dtype):
    x = jax.random.normal(jax.random.key(0), (n, 4), dtype)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def descend(network, problem, t):
    """Gradient descent with small steps, within about 1e-4 of the flow."""
    rate = 1e-3
    return nth.train(network, problem, [round(t / rate)], optax.sgd(rate)).train[-1]


def test_relu_network_agrees_with_gradient_descent(dtype):
    x = points(20, dtype)
    problem = nth.Problem(x, jnp.sin(3 * x[:, 0]))
    network = nth.MLP(
        4, 32, 1, activation="relu", use_bias=True, dtype=dtype, key=jax.random.key(0)
    )
    dynamics = nth.GradientFlow(network, problem)
    _, controller = controllers(dynamics, dtype)
    solved = nth.integrate(
        dynamics, [20.0], stepsize_controller=controller, max_steps=500
    )
    expected = descend(network, problem, 20.0)
    np.testing.assert_allclose(solved.train[-1], expected, atol=1e-3)


def test_smooth_problems_take_the_same_steps(dtype):
    x = points(6, dtype)
    problem = nth.Problem(x, jnp.sin(3 * x[:, 0]))
    network = nth.MLP(4, 32, 1, dtype=dtype, key=jax.random.key(0))
    for dynamics in (
        nth.GradientFlow(network, problem),
        nth.MatrixFreeHierarchy(network, problem, order=3),
    ):
        plain, relaxed = (
            nth.integrate(dynamics, [0.5, 5.0], stepsize_controller=controller)
            for controller in controllers(dynamics, dtype)
        )
        assert plain.counts["num_steps"] == relaxed.counts["num_steps"]
        # Up to rounding error, since the two compile to different code.
        tolerance = 1e-10 if dtype == jnp.float64 else 1e-5
        np.testing.assert_allclose(plain.train, relaxed.train, atol=tolerance)


@pytest.mark.parametrize("dtype", [True], ids=["float64"], indirect=True)
@pytest.mark.parametrize("method", ["DenseExponential", "DenseRosenbrock", "ROCK4"])
def test_other_solvers_keep_their_tolerances(method, dtype):
    """Multistep methods start with a lower order, which is not taken for a kink."""
    x = points(6, dtype)
    problem = nth.Problem(x, jnp.sin(3 * x[:, 0]))
    network = nth.MLP(4, 32, 1, dtype=dtype, key=jax.random.key(0))
    if method == "ROCK4":
        dynamics = nth.MatrixFreeHierarchy(network, problem, order=3)
        solver = nth.ROCK4()
    else:
        kernels = nth.kernels(network, problem, order=4)
        dynamics = nth.DenseHierarchy(kernels, problem)
        solver = getattr(nth, method)(dynamics)
    plain, _ = controllers(dynamics, dtype)
    if method == "ROCK4":
        plain = dataclasses.replace(plain, pcoeff=0.3, icoeff=0.4)  # its default gains
    by_default, by_hand = (
        nth.integrate(dynamics, [2.0, 5.0], solver=solver, stepsize_controller=given)
        for given in (None, plain)
    )
    assert by_default.counts["num_steps"] == by_hand.counts["num_steps"]
    tolerance = 1e-10 if dtype == jnp.float64 else 1e-5  # compiled to different code
    np.testing.assert_allclose(by_default.train, by_hand.train, atol=tolerance)
