"""Kernels by layers against the operator D; networks that are not chains of layers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth
from nth._network.base import trainable
from nth._network.dense_layers import as_layers

KEY = jax.random.key(3)


def layers_of(network, problem, filter_spec=eqx.is_inexact_array):
    checked = trainable(network, problem, filter_spec)
    apply, params, problem = checked.apply, checked.params, checked.problem
    return as_layers(apply, params, problem.x_train[0])


class Generic(eqx.Module):
    """A network whose layers are not recognized."""

    network: Any

    def __call__(self, x):
        return self.network(x)


def check(network, problem, filter_spec=eqx.is_inexact_array, order=4, **options):
    assert layers_of(network, problem, filter_spec) is not None
    is_tree = isinstance(filter_spec, eqx.Module)
    spec = Generic(filter_spec) if is_tree else filter_spec
    generic = Generic(network)
    assert layers_of(generic, problem, spec) is None
    by_layers = nth.kernels(
        network, problem, order=order, filter_spec=filter_spec, **options
    )
    lifted = nth.kernels(generic, problem, order=order, filter_spec=spec)
    for r in range(1, order + 1):
        np.testing.assert_allclose(by_layers[r], lifted[r], rtol=1e-10, atol=1e-12)


def test_mlp_of_three_hidden_layers_equals_the_operator():
    options = {"sigma_w": 1.4, "sigma_b": 0.6, "activation": "gelu"}
    network = make_network(5, 3, parameterization="ntk", use_bias=True, **options)
    check(network, make_problem(3, 2))


def test_vector_outputs_in_blocks_equal_the_operator():
    network = make_network(4, 2, outputs=2, use_bias=True, parameterization="standard")
    check(network, make_problem(3, 2, outputs=2), block_size=4)


def test_equinox_mlp_with_a_final_activation_equals_the_operator():
    network = eqx.nn.MLP(
        3, 2, 4, 2, jax.nn.softplus, final_activation=jnp.tanh, key=KEY
    )
    check(network, make_problem(2, 1, outputs=2))


def test_equinox_mlp_of_scalars_equals_the_operator():
    network = eqx.nn.MLP("scalar", "scalar", 4, 1, jnp.sin, key=KEY)
    x = jnp.asarray([0.3, -1.0, 0.8])
    check(network, nth.Problem(x[:2], jnp.ones(2), x[2:]))


def test_frozen_layers_equal_the_operator(problem):
    network = make_network(4, 2, use_bias=True)
    spec = jax.tree.map(lambda _: True, network)
    spec = eqx.tree_at(
        lambda net: (net.weights[1], net.biases[0]), spec, (False, False)
    )
    check(network, problem, spec, order=3)


def test_fifth_order_equals_the_operator():
    check(make_network(3, 1), make_problem(2, 1), order=5)


def test_results_do_not_depend_on_parts_of_extra_slots(problem, monkeypatch):
    network = make_network(3, 1)
    whole = nth.kernels(network, make_problem(2, 5), order=4)
    monkeypatch.setattr("nth._kernels.assembly._EXTRA_BYTES", 1000)
    parts = nth.kernels(network, make_problem(2, 5), order=4)
    for expected, actual in zip(whole, parts, strict=True):
        np.testing.assert_allclose(expected, actual, rtol=1e-12, atol=1e-14)


@jax.custom_jvp
def elementwise_primal_only(x):
    """Elementwise, with a derivative that is not elementwise."""
    return jnp.tanh(x)


elementwise_primal_only.defjvp(
    lambda x, v: (elementwise_primal_only(*x), jnp.flip(v[0]))
)


@pytest.mark.parametrize(
    "activation",
    [
        jax.nn.softmax,
        lambda x: x - jnp.mean(x),
        jnp.cumsum,
        jnp.flip,
        elementwise_primal_only,
    ],
)
def test_activations_that_mix_neurons_are_not_recognized(activation, problem):
    network = make_network(3, 1, activation=activation)
    assert layers_of(network, problem) is None


@pytest.mark.parametrize(
    "activation",
    [
        *("tanh", "erf", "relu", "gelu", "sigmoid", "softplus", "sin", "linear"),
        *(jax.nn.silu, jax.nn.mish, jax.scipy.special.ndtr, jnp.sinc, jnp.log2),
    ],
)
def test_activations_of_one_neuron_are_recognized(activation, problem):
    assert layers_of(make_network(3, 1, activation=activation), problem) is not None


def test_networks_that_resemble_a_chain_are_not_recognized(problem):
    class Twice(nth.MLP):
        """Uses each weight twice."""

        def __call__(self, x):
            return super().__call__(x) + super().__call__(2 * x)

    twice = Twice(3, 4, 1, key=KEY)  # pyright: ignore
    assert layers_of(twice, problem) is None
    learned = eqx.nn.MLP(3, "scalar", 4, 1, activation=eqx.nn.PReLU(), key=KEY)
    assert layers_of(learned, problem) is None
    affine = eqx.nn.MLP(3, "scalar", 4, 0, final_activation=jnp.tanh, key=KEY)
    assert layers_of(affine, problem) is None
    scanned = eqx.nn.MLP(3, "scalar", 4, 2, scan=True, key=KEY)
    assert layers_of(scanned, problem) is None
    plain = eqx.nn.MLP(3, "scalar", 4, 1, key=KEY)
    swapped = eqx.tree_at(
        lambda net: net.layers[0], plain, eqx.nn.Lambda(lambda x: jnp.ones(4) * x[0])
    )
    assert layers_of(plain, problem) is not None
    assert layers_of(swapped, problem) is None


def test_float32_is_kept():
    problem = make_problem(3, 2)
    single = nth.Problem(
        problem.x_train.astype(jnp.float32),
        jnp.ones(3, jnp.float32),
        problem.x_test.astype("f4"),
    )
    options = {"use_bias": True, "parameterization": "ntk"}
    formed = nth.kernels(
        make_network(4, 2, dtype=jnp.float32, **options), single, order=4
    )
    assert all(kernel.dtype == jnp.float32 for kernel in formed)
    assert formed[4].shape == (5, 3, 3, 3)
