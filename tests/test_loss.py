"""Losses and output gradients against closed forms; g contains the factor 1/n."""

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
def test_cross_entropy_gradient_is_softmax_minus_label(labels):
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


def test_custom_loss_has_the_gradient_of_its_function():
    loss = nth.CustomLoss(lambda f, y: jnp.sum((f - y) ** 4))
    f, y = jnp.asarray(OUTPUTS), jnp.zeros((2, 3))
    np.testing.assert_allclose(loss.gradient(f, y), 4 * OUTPUTS**3 / 2)


def test_integer_targets_take_the_dtype_of_the_inputs():
    x = jnp.ones((2, 1), jnp.float32)
    problem = nth.Problem(x, np.array([1, -1]))
    assert problem.y_train.dtype == jnp.float32
    labeled = nth.Problem(x, np.array([1, 0]), loss=nth.SoftmaxCrossEntropy())
    assert jnp.issubdtype(labeled.y_train.dtype, jnp.integer)


def test_problem_has_training_points_first():
    problem = nth.Problem(np.zeros((2, 3)), np.zeros(2), np.ones((4, 3)))
    assert (problem.n_train, problem.n_test) == (2, 4)
    np.testing.assert_array_equal(problem.x.sum(axis=1), [0, 0, 3, 3, 3, 3])
    assert nth.Problem(np.zeros((2, 3)), np.zeros(2)).n_test == 0


def test_problem_is_an_argument_of_jit():
    problem = nth.Problem(np.zeros((2, 3)), np.zeros(2))
    assert jax.jit(lambda p: p.x.shape)(problem) == (2, 3)


# ---------------------------------------------------------------- 32 bits

ONES = np.ones((2, 1), np.float32)
CROSS_ENTROPY = nth.SoftmaxCrossEntropy()


@pytest.mark.parametrize(
    ("argument", "number", "call"),
    [
        ("y_train", "1099511627776", lambda: nth.Problem(ONES, [0, 2**40])),
        ("x_train", "4294967297", lambda: nth.Problem([[1], [2**32 + 1]], [1, 1])),
        ("x_test", "-2147483649", lambda: nth.Problem([[1]], [1], [[-(2**31) - 1]])),
        (
            "y_train",
            "4294967297",
            lambda: nth.Problem(ONES, [0, 2**32 + 1], loss=CROSS_ENTROPY),
        ),
        ("y_train", "4294967295", lambda: nth.Problem(ONES, [0, 2**32 - 1])),
        ("x_train", r"1e\+39", lambda: nth.Problem([[1.0], [1e39]], [1.0, 1.0])),
        ("y_train", r"-1e\+39", lambda: nth.Problem(ONES, np.array([-1e39, np.inf]))),
        ("ts", r"1e\+39", lambda: nth.closed_form(*formed(), [1e39])),
    ],
)
def test_numbers_that_do_not_fit_32_bits_are_refused(argument, number, call):
    """JAX would wrap integers around, 2^40 to 0, and make floats infinite."""
    with jax.enable_x64(False):
        message = rf"{argument} holds {number}, which does not fit .*jax_enable_x64"
        with pytest.raises(ValueError, match=message):
            call()
    if argument != "ts":
        with jax.enable_x64(True):  # the cure; infinite targets remain errors
            try:
                call()
            except ValueError as error:
                assert "NaN or infinite" in str(error)  # noqa: PT017


def formed():
    tensors = tuple(jnp.ones(shape, jnp.float32) for shape in ((2,), (2, 2)))
    return nth.Kernels(tensors), nth.Problem(ONES, [1, 1])


def test_numbers_that_fit_are_kept():
    with jax.enable_x64(False):
        problem = nth.Problem([[2**31 - 1], [-(2**31)]], np.array([1e38, -1e38]))
        assert problem.x_train.dtype == jnp.int32
        np.testing.assert_array_equal(problem.x_train[:, 0], [2**31 - 1, -(2**31)])
        assert problem.y_train.dtype == jnp.float32
