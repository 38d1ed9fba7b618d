"""Integration: times, options, statistics."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth


@pytest.fixture(scope="module")
def hierarchy():
    problem = make_problem()
    return nth.DenseHierarchy(nth.kernels(make_network(4, 1), problem, 3), problem)


def test_training_begins_at_zero_whatever_the_first_time(hierarchy):
    whole = nth.integrate(hierarchy, [0.0, 1.0, 3.0])
    np.testing.assert_array_equal(whole.train[0], hierarchy.levels[0][:4])
    late = nth.integrate(hierarchy, [3.0])
    np.testing.assert_allclose(late.train[0], whole.train[-1], atol=1e-8)


def test_time_zero_alone(hierarchy):
    solution = nth.integrate(hierarchy, [0.0])
    np.testing.assert_array_equal(solution.test[0], hierarchy.levels[0][4:])
    assert solution.valid_until == jnp.inf


def test_loss_is_that_of_the_outputs(hierarchy):
    solution = nth.integrate(hierarchy, [0.0, 1.0, 3.0])
    y = np.asarray(hierarchy.problem.y_train)
    expected = [np.mean((f - y) ** 2) / 2 for f in np.asarray(solution.train)]
    np.testing.assert_allclose(solution.loss, expected)


def test_the_users_solver_and_controller_are_used(hierarchy):
    """Halving a constant step of Heun's method divides the error by 4, not by 2⁵."""
    tight = diffrax.PIDController(rtol=1e-12, atol=1e-13)
    exact = nth.integrate(hierarchy, [2.0], stepsize_controller=tight).train
    errors = []
    for steps in (20, 40):
        controller = diffrax.StepTo(jnp.linspace(0, 2, steps + 1))
        solution = nth.integrate(
            hierarchy, [2.0], solver=diffrax.Heun(), stepsize_controller=controller
        )
        assert solution.stats["num_steps"] == steps
        errors.append(float(jnp.max(jnp.abs(solution.train - exact))))
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2


def test_forward_mode_adjoint(hierarchy):
    """The adjoint is the user's: `ForwardMode` and the default give one answer."""
    forward = nth.integrate(hierarchy, [1.0], adjoint=diffrax.ForwardMode())
    np.testing.assert_allclose(
        forward.train, nth.integrate(hierarchy, [1.0]).train, atol=1e-14
    )


def test_statistics_and_label(hierarchy):
    solution = nth.integrate(hierarchy, [1.0])
    assert solution.label == "level-3 hierarchy"
    assert solution.stats["last_time"] == 1.0
    assert solution.stats["num_steps"] >= solution.stats["num_accepted_steps"] > 1
    assert solution.result == diffrax.RESULTS.successful


def test_dynamics_of_the_users_own():
    """df/dt = −g: each output relaxes to its target by e^{−t/n}."""

    class Relaxation(nth.AbstractDynamics):
        problem: nth.Problem
        label: str = "relaxation"
        truncated = False

        def initial_state(self):
            return jnp.zeros(6)

        def vector_field(self, t, state, args):
            return -jnp.concatenate([self.output_gradient(state), jnp.zeros(2)])

        def outputs(self, state):
            return state

        def error_norm(self, scaled):
            return jnp.max(jnp.abs(scaled))

    problem = make_problem()
    solution = nth.integrate(Relaxation(problem), [1.0])
    y = np.asarray(problem.y_train)
    np.testing.assert_allclose(solution.train[0], y * (1 - np.exp(-0.25)), atol=1e-7)
