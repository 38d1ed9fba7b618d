"""Networks: explicit formulas of parameterizations, initialization, activations."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import make_network

import nth

X = np.array([0.3, -0.8, 0.5])


def explicit_formula(network, parameterization, sigma_w, sigma_a, sigma_b):
    """f(θ, x) in NumPy, as the sources define each parameterization."""
    (w1, w2, a), (b1, b2, c) = network.weights, network.biases
    if parameterization == "nth":
        x1 = np.tanh(w1 @ X + b1) / np.sqrt(w1.shape[0])
        x2 = np.tanh(w2 @ x1 + b2) / np.sqrt(w2.shape[0])
        return a @ x2 + c
    if parameterization == "ntk":
        x1 = np.tanh(sigma_w * w1 @ X / np.sqrt(3) + sigma_b * b1)
        x2 = np.tanh(sigma_w * w2 @ x1 / np.sqrt(w2.shape[1]) + sigma_b * b2)
        return sigma_a * a @ x2 / np.sqrt(a.shape[1]) + sigma_b * c
    x2 = np.tanh(w2 @ np.tanh(w1 @ X + b1) + b2)
    return a @ x2 + c


@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
@pytest.mark.parametrize("outputs", [None, 2])
def test_forward_pass_equals_the_formula(parameterization, outputs):
    scales: Any = {"sigma_w": 1.3, "sigma_a": 0.7, "sigma_b": 0.4}
    network = make_network(
        5,
        outputs=outputs,
        parameterization=parameterization,
        use_bias=True,
        **scales,
    )
    expected = explicit_formula(network, parameterization, **scales)
    actual = network(jnp.asarray(X))
    assert actual.shape == (() if outputs is None else (outputs,))
    np.testing.assert_allclose(actual, expected if outputs else expected[0])


@pytest.mark.parametrize(
    ("parameterization", "hidden", "last", "bias"),
    [
        ("nth", 1.5, 0.5, 0.3),
        ("ntk", 1.0, 1.0, 1.0),
        ("standard", 1.5 / 200**0.5, 0.5 / 200**0.5, 0.3),
    ],
)
def test_initialization_has_the_documented_deviation(
    parameterization, hidden, last, bias
):
    network = nth.MLP(
        3,
        200,
        2,
        out_size=200,
        parameterization=parameterization,
        use_bias=True,
        sigma_w=1.5,
        sigma_a=0.5,
        sigma_b=0.3,
        key=jax.random.key(0),
    )
    # The relative standard error of a deviation is 1/√(2N): 0.35 % for 40,000 draws.
    np.testing.assert_allclose(jnp.std(network.weights[1]), hidden, rtol=0.02)
    np.testing.assert_allclose(jnp.std(network.weights[2]), last, rtol=0.02)
    biases = jnp.concatenate(network.biases or ())
    np.testing.assert_allclose(jnp.std(biases), bias, rtol=0.15)
    assert (
        abs(jnp.corrcoef(network.weights[1].ravel(), network.weights[2].ravel())[0, 1])
        < 0.02
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tanh", np.tanh),
        ("erf", scipy.special.erf),
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu", lambda x: x * scipy.special.ndtr(x)),
        ("sigmoid", scipy.special.expit),
        ("softplus", lambda x: np.log1p(np.exp(x))),
        ("sin", np.sin),
        ("linear", lambda x: x),
        (nth.softplus(4.0), lambda x: np.log1p(np.exp(4 * x)) / 4),
        (jnp.cos, np.cos),
    ],
)
def test_named_activations_equal_their_formulas(name, expected):
    activation = make_network(activation=name).activation
    np.testing.assert_allclose(activation(jnp.asarray(X)), expected(X), rtol=1e-12)


def test_equal_activations_do_not_recompile():
    assert hash(nth.softplus(2.0)) == hash(nth.softplus(2.0))
    assert nth.softplus(2.0) == nth.softplus(2.0)
    assert nth.softplus(2.0) != nth.softplus(3.0)


def test_dropout_in_inference_mode_is_accepted(problem):
    key = jax.random.key(0)
    layers = [eqx.nn.Linear(3, "scalar", key=key), eqx.nn.Dropout(0.5)]
    network = eqx.nn.inference_mode(eqx.nn.Sequential(layers))
    assert nth.kernels(network, problem, order=2)[2].shape == (6, 4)


def test_one_key_gives_one_network():
    same = make_network(seed=1), make_network(seed=1)
    assert eqx.tree_equal(*same)
    assert not eqx.tree_equal(same[0], make_network(seed=2))
