"""Taylorized networks: where they equal the network or level 2, and their order."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth

TS = np.array([0.0, 0.5, 3.0])


def test_degree_1_is_level_2_on_outputs():
    problem = make_problem(4, 2, outputs=2, loss=nth.SoftmaxCrossEntropy())
    network = make_network(4, 1, outputs=2)
    linear = nth.integrate(nth.TaylorizedFlow(network, problem, degree=1), TS)
    level = nth.solve(network, problem, TS, order=2, method="dense")
    np.testing.assert_allclose(linear.train, level.train, atol=1e-6)
    np.testing.assert_allclose(linear.test, level.test, atol=1e-6)
    assert linear.label == "linearized network"


@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")  # of a narrow network
def test_a_polynomial_network_equals_its_taylorization(problem):
    """A linear network of two layers has degree 2 in θ, so degree 2 is exact."""
    network = make_network(4, 1, activation="linear")
    quadratic = nth.integrate(nth.TaylorizedFlow(network, problem, degree=2), TS)
    truth = nth.gradient_flow(network, problem, TS)
    np.testing.assert_allclose(quadratic.test, truth.test, atol=2e-6)
    level = nth.solve(network, problem, TS, order=3, method="dense")
    assert jnp.max(jnp.abs(level.test[-1] - truth.test[-1])) > 1e-3
    parts = zip(quadratic.state.weights, truth.state.weights, strict=True)
    for part, (moved, end) in enumerate(parts):
        np.testing.assert_allclose(network.weights[part] + moved, end, atol=2e-6)


def test_degree_d_is_exact_to_order_d_and_is_not_level_d_plus_1():
    """Errors are of order t^{d+1}, as those of level d + 1, with another factor."""
    problem, network = make_problem(4, 2), make_network(4, 1)
    ts = np.array([0.0, 0.05, 0.1])
    truth = nth.gradient_flow(network, problem, ts).test
    taylor = nth.integrate(nth.TaylorizedFlow(network, problem, degree=2), ts).test
    level = nth.solve(network, problem, ts, order=3, method="dense").test
    errors = jnp.linalg.norm(taylor - truth, axis=1)
    slope = jnp.log2(errors[2] / errors[1])
    np.testing.assert_allclose(slope, 3, atol=0.2)
    assert jnp.linalg.norm(taylor[2] - level[2]) > 0.2 * errors[2]


def test_taylorized_networks_are_compared_with_levels(problem):
    network = make_network(4, 1)
    models = {"Taylorized 2": nth.TaylorizedFlow(network, problem, degree=2)}
    comparison = nth.compare(network, problem, TS, [2], models=models, method="dense")
    alone = nth.integrate(models["Taylorized 2"], TS)
    difference = np.asarray(alone.test - comparison.truth.test)
    expected = np.sqrt(np.mean(difference**2, axis=1))
    actual = comparison.error("Taylorized 2", "test")
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    assert list(comparison.every) == [2, "Taylorized 2"]
    assert "Taylorized 2" in str(comparison)
    data = comparison.to_xarray()
    assert list(data.model.values) == ["truth", "p=2", "Taylorized 2"]
    assert len(comparison.plot().axes[0].lines) == 3


def test_float32_is_kept():
    problem = make_problem(3, 1)
    arrays = (problem.x_train, problem.y_train, problem.x_test)
    single = nth.Problem(*(jnp.asarray(a, jnp.float32) for a in arrays))
    network = make_network(4, 1, dtype=jnp.float32)
    flow = nth.integrate(nth.TaylorizedFlow(network, single, degree=2), TS[:2])
    assert flow.test.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(flow.test))
    assert flow.valid_until == jnp.inf


def test_errors_name_the_argument(problem):
    network = make_network(4, 1)
    with pytest.raises(ValueError, match="degree must be at least 1; got 0"):
        nth.TaylorizedFlow(network, problem, degree=0)
    other = nth.TaylorizedFlow(network, make_problem(4, 2, seed=1), degree=2)
    with pytest.raises(ValueError, match="and problem have different x_train"):
        nth.compare(network, problem, TS, [2], models={"other": other})
    same = nth.TaylorizedFlow(network, problem, degree=2)
    with pytest.raises(ValueError, match=r"strings as names, other than .truth."):
        nth.compare(network, problem, TS, [2], models={"truth": same})
