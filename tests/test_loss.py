"""Losses and output gradients against closed forms; the 1/n is in g."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import nth

OUTPUTS = np.array([[0.3, -1.2, 2.0], [4.0, 0.1, -0.7]])


def test_squared_error_has_a_half_and_the_mean():
    targets = np.ones((2, 3))
    loss = nth.SquaredError()
    f, y = jnp.asarray(OUTPUTS), jnp.asarray(targets)
    expected = np.sum((OUTPUTS - targets) ** 2) / (2 * 2)
    np.testing.assert_allclose(loss(f, y), expected)
    np.testing.assert_allclose(loss.gradient(f, y), (OUTPUTS - targets) / 2)


@pytest.mark.parametrize("labels", [np.array([2, 0]), np.eye(3)[[2, 0]]])
def test_cross_entropy_gradient_is_softmax_less_label(labels):
    loss = nth.SoftmaxCrossEntropy()
    f, y = jnp.asarray(OUTPUTS), jnp.asarray(labels)
    softmax = scipy.special.softmax(OUTPUTS, axis=1)
    np.testing.assert_allclose(loss(f, y), -np.log(softmax[[0, 1], [2, 0]]).mean())
    expected = (softmax - np.eye(3)[[2, 0]]) / 2
    np.testing.assert_allclose(loss.gradient(f, y), expected, atol=1e-15)


def test_logistic_gradient_is_a_sigmoid():
    f, y = OUTPUTS[0], np.array([1.0, -1.0, -1.0])
    loss = nth.LogisticLoss()
    value = loss(jnp.asarray(f), jnp.asarray(y))
    np.testing.assert_allclose(value, np.log1p(np.exp(-y * f)).mean())
    expected = -y * scipy.special.expit(-y * f) / 3
    np.testing.assert_allclose(loss.gradient(jnp.asarray(f), jnp.asarray(y)), expected)


def test_logistic_loss_does_not_overflow():
    value = nth.LogisticLoss()(jnp.array([-1e4]), jnp.array([1.0]))
    np.testing.assert_allclose(value, 1e4)


def test_a_function_of_the_users_is_a_loss():
    loss = nth.Loss(lambda f, y: jnp.sum((f - y) ** 4))
    f, y = jnp.asarray(OUTPUTS), jnp.zeros((2, 3))
    np.testing.assert_allclose(loss.gradient(f, y), 4 * OUTPUTS**3 / 2)


def test_integer_targets_become_the_data_s_floats():
    x = jnp.ones((2, 1), jnp.float32)
    problem = nth.Problem(x, np.array([1, -1]))
    assert problem.y_train.dtype == jnp.float32
    labelled = nth.Problem(x, np.array([1, 0]), loss=nth.SoftmaxCrossEntropy())
    assert jnp.issubdtype(labelled.y_train.dtype, jnp.integer)


def test_problem_orders_points():
    problem = nth.Problem(np.zeros((2, 3)), np.zeros(2), np.ones((4, 3)))
    assert (problem.n_train, problem.n_test) == (2, 4)
    np.testing.assert_array_equal(problem.x.sum(axis=1), [0, 0, 3, 3, 3, 3])
    assert nth.Problem(np.zeros((2, 3)), np.zeros(2)).n_test == 0


def test_problem_goes_through_jit():
    problem = nth.Problem(np.zeros((2, 3)), np.zeros(2))
    assert jax.jit(lambda p: p.x.shape)(problem) == (2, 3)
