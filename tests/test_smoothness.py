"""Detection of kinks from values of derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem

import nth
from nth._network.smoothness import has_kinks

X = jnp.asarray(np.random.default_rng(0).normal(size=3))


def kinked(network: eqx.Module) -> bool:
    params, static = eqx.partition(network, eqx.is_inexact_array)
    return has_kinks(lambda params: eqx.combine(params, static)(X), params)


@pytest.mark.parametrize("activation", ["relu", jax.nn.leaky_relu, jnp.abs])
def test_activations_with_kinks_are_detected(activation):
    assert kinked(make_network(activation=activation))


@pytest.mark.parametrize("activation", ["softplus", "tanh", jax.nn.mish])
def test_smooth_activations_that_use_a_maximum_have_no_kinks(activation):
    assert not kinked(make_network(activation=activation))


def test_attention_is_smooth():
    assert not kinked(Shared(3, jax.random.key(0)))


def test_a_stiff_smooth_network_takes_rock4():
    network, problem = make_network(activation="softplus"), make_problem()
    flow = nth.gradient_flow(network, problem, [0.0, 2e3])
    assert flow.stats["solver"] == "ROCK4"
