"""Learning rates M in contractions, projections, layer kernels and linearized networks:
each agrees with rates of 1 in the parameters δ of θ = θ₀ + √M δ."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_problem

import nth

RATES = {"first": 0.25, "last": 4.0}


def with_rates() -> tuple[Any, Any, Any]:
    """A network, a learning rate for each layer, and the network as a function of δ,
    θ = θ₀ + √M δ, with rates of 1."""
    params = {
        "first": jax.random.normal(jax.random.key(1), (5, 3)),
        "last": jax.random.normal(jax.random.key(2), (5,)),
    }

    def apply(params, x):
        return params["last"] @ jnp.tanh(params["first"] @ x)

    def of_delta(delta, x):
        moved = {k: params[k] + RATES[k] ** 0.5 * delta[k] for k in params}
        return apply(moved, x)

    network = nth.from_apply(apply, params)
    rates = eqx.tree_at(lambda network: network.params, network, RATES)
    other = nth.from_apply(of_delta, jax.tree.map(jnp.zeros_like, params))
    return network, rates, other


def assert_close(actual: Any, expected: Any) -> None:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_contractions_and_projections_agree_in_delta(order):
    network, rates, other = with_rates()
    problem = make_problem(3, 2)
    vectors = [jnp.arange(1.0, 4.0)] * (order - 1)
    modes = jnp.asarray([[1.0, 0.5, -1.0], [0.2, -1.0, 0.3]])
    for function, argument in ((nth.contract, vectors), (nth.project, modes)):
        call = partial(function, problem=problem, order=order)
        name = "vectors" if function is nth.contract else "modes"
        actual = call(network, learning_rates=rates, **{name: argument})
        expected = call(other, **{name: argument})
        assert_close(
            getattr(actual, "tensors", actual), getattr(expected, "tensors", expected)
        )


def test_layer_kernels_and_laziness_agree_in_delta():
    network, rates, other = with_rates()
    problem = make_problem(3, 2)
    parts = nth.layer_kernels(network, problem, learning_rates=rates)
    assert_close(list(parts.values()), list(nth.layer_kernels(other, problem).values()))
    whole = nth.kernels(network, problem, order=2, learning_rates=rates)[2]
    assert_close(sum(parts.values()), whole)
    lazy = nth.theory.laziness(network, problem, learning_rates=rates)
    np.testing.assert_allclose(lazy, nth.theory.laziness(other, problem), rtol=1e-6)


def test_displacement_and_taylorized_flow_agree_in_delta():
    network, rates, other = with_rates()
    problem = make_problem(3, 2)
    ts = [0.5, 3.0]
    moved = nth.displacement(network, problem, ts, learning_rates=rates)
    deltas = nth.displacement(other, problem, ts)
    roots = eqx.tree_at(
        lambda n: n.params, network, {k: v**0.5 for k, v in RATES.items()}
    )
    assert_close(moved, jax.tree.map(jnp.multiply, roots.params, deltas.params))
    for degree in (1, 2):
        flow = nth.TaylorizedFlow(network, problem, degree=degree, learning_rates=rates)
        expected = nth.TaylorizedFlow(other, problem, degree=degree)
        actual, reference = (nth.integrate(d, ts).test for d in (flow, expected))
        np.testing.assert_allclose(actual, reference, rtol=1e-6)
