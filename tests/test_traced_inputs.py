"""Arguments without a concrete value, under `jax.jit`, `jax.vmap` and `jax.grad`.

Functions that need concrete values raise an error, derivatives are correct, and a
missing derivative is an error.
"""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")

KEY = jax.random.key(0)
PROBLEM = make_problem()
NETWORK = make_network(3, 1)
NTK = np.concatenate([np.eye(4), np.ones((2, 4))])
KERNELS = typed_nth.Kernels((jnp.ones(6), jnp.asarray(NTK)))
BOUNDS = typed_nth.theory.bounds(KERNELS, 100)
VALUES = jnp.array([1.0, 2.0, 3.0])


@pytest.fixture(scope="module")
def comparison() -> Any:
    options: dict[str, Any] = {"method": "dense", "y_test": [1.0, -1.0]}
    return nth.compare(NETWORK, PROBLEM, [1.0], (2,), **options)


def sweep(key: Any = KEY, factor: Any = 1.0, **options: Any) -> Any:
    def measure(width: int, key: Any) -> Any:
        return jnp.asarray(factor)

    given = {"widths": [2], "initializations": 2, "key": key, **options}
    return nth.scaling.sweep(measure, **given).values


def fit(values: Any = VALUES, **options: Any) -> Any:
    return nth.scaling.fit([1, 2, 3], values, **options).slope


def phase(output: Any) -> Any:
    return nth.catapult(output, 1.0, 0.1, 8, 2).phase


def lipschitz(scale: Any) -> Any:
    return nth.theory.check_activation(lambda z: scale * jnp.tanh(z)).bounds[0]


@pytest.mark.parametrize(
    ("argument", "function", "value"),
    [
        ("kernels", lambda k: nth.theory.bounds(k, 100).time(), KERNELS),
        ("width", lambda w: nth.theory.bounds(KERNELS, w).time(), 100.0),
        ("bounds", lambda b: b.time(), BOUNDS),
        ("bounds", lambda b: b.window, BOUNDS),
        ("bounds", lambda b: b.width_to_converge(), BOUNDS),
        ("bounds", lambda b: b.kernel_error(2, 1.0), BOUNDS),
        ("bounds", lambda b: b.error(2, 1.0), BOUNDS),
        ("t", lambda t: BOUNDS.error(2, t), 1.0),
        ("epsilon", lambda epsilon: BOUNDS.time(epsilon), 0.1),
        ("x", lambda x: nth.theory.check_data(x).c, PROBLEM.x_train),
        ("radius", lambda r: nth.theory.check_activation("tanh", radius=r), 1.0),
        ("activation", lipschitz, 1.0),
        ("values", fit, VALUES),
        ("values", lambda v: fit([v, 2 * v, 3 * v]), 1.0),
        ("confidence", lambda c: fit(confidence=c), 0.9),
        ("key", sweep, KEY),
        ("measure", lambda factor: sweep(factor=factor), 1.0),
        ("widths", lambda w: sweep(widths=[w]), 2),
        ("catapult", phase, 0.1),
        (
            "rows",
            lambda r: nth.kernels(NETWORK, PROBLEM, order=2, rows=r),
            jnp.arange(2),
        ),
    ],
)
def test_values_that_must_be_concrete_are_named(
    argument: str, function: Any, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} has no concrete value under"):
        jax.jit(function)(value)


def test_values_that_must_be_concrete_are_named_under_grad_and_vmap() -> None:
    with pytest.raises(ValueError, match=r"^values has no concrete value under"):
        jax.grad(fit)(VALUES)
    with pytest.raises(ValueError, match=r"^catapult has no concrete value under"):
        jax.vmap(phase)(VALUES / 10)


@pytest.mark.parametrize(
    ("argument", "function"),
    [
        ("kernels", lambda: nth.theory.bounds(KERNELS, 100).time()),
        ("x", lambda: nth.theory.check_data(PROBLEM.x_train).c),
        ("activation", lambda: nth.theory.check_activation("tanh").bounds[0]),
        ("measure", sweep),
        ("catapult", lambda: len(phase(0.1))),
    ],
)
def test_computations_with_constants_under_jit_are_named(argument: str, function: Any):
    """JAX traces the results of these computations."""
    with pytest.raises(ValueError, match=rf"^{argument} has no concrete value under"):
        jax.jit(lambda scale: scale * function())(1.0)


@pytest.mark.parametrize(
    "use", [lambda c: str(c), lambda c: c.to_xarray(), lambda c: c.plot()]
)
def test_tables_and_figures_are_refused_under_jit(
    comparison: Any, use: Callable[[Any], Any]
) -> None:
    message = r"^comparison has no concrete value"
    with pytest.raises(ValueError, match=message):
        eqx.filter_jit(use)(comparison)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda scale: [use(comparison), scale][1])(1.0)


def test_accuracy_under_jit_needs_known_labels(comparison: Any) -> None:
    """The outputs may be traced."""
    with pytest.raises(ValueError, match=r"^comparison has no concrete value"):
        eqx.filter_jit(lambda c: c.accuracy(2))(comparison)

    def accuracy(train: Any) -> Any:
        return eqx.tree_at(lambda c: c.truth.train, comparison, train).accuracy(
            "truth", "train"
        )

    outputs = comparison.truth.train
    np.testing.assert_array_equal(jax.jit(accuracy)(outputs), accuracy(outputs))


def scaled(scale: Any) -> Any:
    """A network with `scale` in its parameters."""
    return eqx.tree_at(lambda n: n.weights[0], NETWORK, replace_fn=lambda w: scale * w)


def closing_over(scale: Any) -> Any:
    """A network whose function closes over `scale`."""
    return nth.from_apply(lambda p, x: scale * jnp.tanh(scale * p @ x), jnp.arange(3.0))


def derivative_by_differences(function: Callable[[float], Any]) -> Any:
    return (function(1 + 1e-5) - function(1 - 1e-5)) / 2e-5


@pytest.mark.parametrize("network", [scaled, closing_over])
def test_derivative_of_laziness_equals_differences(
    network: Callable[[Any], Any],
) -> None:
    def laziness(scale: Any) -> Any:
        return nth.theory.laziness(network(scale), PROBLEM)

    expected = derivative_by_differences(laziness)
    np.testing.assert_allclose(jax.grad(laziness)(1.0), expected, rtol=1e-6)


def test_derivative_of_laziness_of_a_linear_network() -> None:
    """Both are zero."""
    linear = nth.from_apply(lambda p, x: p @ x, jnp.arange(3.0))
    measure = jax.grad(lambda y: nth.theory.laziness(linear, with_targets(y)))
    np.testing.assert_array_equal(measure(PROBLEM.y_train), 0)


def with_targets(y: Any) -> Any:
    return nth.Problem(PROBLEM.x_train, y)


def test_max_learning_rate_has_no_derivative() -> None:
    def rate(scale: Any) -> Any:
        return nth.max_learning_rate(closing_over(scale), PROBLEM)

    with pytest.raises(ValueError, match="has no derivative, as it is found by iter"):
        jax.grad(rate)(1.0)
    constant = jax.grad(lambda s: rate(jax.lax.stop_gradient(s)) * s)(1.0)
    np.testing.assert_allclose(constant, rate(1.0))


def test_derivative_of_discrete_training_with_a_closed_over_value() -> None:
    """The learning rate that is computed for a warning is a constant."""

    def loss(scale: Any) -> Any:
        optimizer = optax.sgd(0.1)
        network = closing_over(scale)
        return nth.solve_discrete(network, PROBLEM, 2, optimizer, order=2).loss[-1]

    expected = derivative_by_differences(loss)
    np.testing.assert_allclose(jax.grad(loss)(1.0), expected, rtol=1e-6)


def infinite(scale: Any) -> Any:
    options = {"depth": 1, "activation": lambda z: jnp.sin(scale * z), "nodes": 81}
    return jnp.sum(nth.infinite.kernels(np.eye(2), **options).ntk)


@pytest.mark.parametrize(
    "derivative",
    [jax.grad(infinite), jax.grad(jax.jit(infinite)), jax.jit(jax.grad(infinite))],
)
def test_infinite_kernels_have_no_derivative_in_the_activation(derivative: Any) -> None:
    with pytest.raises(ValueError, match=r"^activation .* jax.lax.stop_gradient"):
        derivative(1.0)


def test_infinite_kernels_of_an_activation_with_a_closed_over_value() -> None:
    constant = jax.grad(lambda s: infinite(jax.lax.stop_gradient(s)) * s)(1.0)
    np.testing.assert_allclose(constant, infinite(1.0), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(infinite)(1.0), constant, rtol=1e-10)


def test_message_names_the_cure() -> None:
    message = "compute it outside of them."
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.jit(fit)(VALUES)
