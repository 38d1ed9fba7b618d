"""Layers, last-layer features, eigenvalues and time scales of the NTK."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem

import nth


@pytest.mark.parametrize(
    "network",
    [make_network(5, 2, use_bias=True), Shared(3, jax.random.key(0))],
    ids=["chain", "any network"],
)
def test_layer_kernels_are_products_of_gradients_and_sum_to_the_ntk(network, problem):
    parts = nth.layer_kernels(network, problem)
    ntk = nth.kernels(network, problem, order=2)[2]
    np.testing.assert_allclose(sum(parts.values()), ntk, rtol=1e-11)

    gradients = jax.vmap(eqx.filter_grad(lambda net, x: net(x)), (None, 0))
    leaves = jax.tree_util.tree_leaves_with_path(
        eqx.filter(gradients(network, problem.x), eqx.is_array)
    )
    assert list(parts) == [jax.tree_util.keystr(path) for path, _ in leaves]
    for (path, leaf), part in zip(leaves, parts.values(), strict=True):
        j = leaf.reshape(len(leaf), -1)
        expected = j @ j[: problem.n_train].T
        np.testing.assert_allclose(part, expected, rtol=1e-10, err_msg=str(path))


@pytest.mark.parametrize("parameterization", ["nth", "ntk", "standard"])
def test_nngp_is_the_covariance_over_redrawn_last_layers(parameterization, problem):
    scales = {"sigma_a": 1.5, "sigma_b": 0.7}
    options = {"parameterization": parameterization, "use_bias": True, **scales}
    network = make_network(8, 2, **options)

    def outputs(key):
        redrawn = nth.MLP(3, 8, 2, key=key, **options)
        last = eqx.tree_at(
            lambda net: (net.weights[-1], net.biases[-1]),
            network,
            (redrawn.weights[-1], jax.tree.leaves(redrawn.biases)[-1]),
        )
        return jax.vmap(last)(problem.x)

    draws = jax.jit(jax.vmap(outputs))(jax.random.split(jax.random.key(1), 20_000))
    expected = np.cov(np.asarray(draws), rowvar=False)[:, : problem.n_train]
    actual = nth.nngp(network, problem, **scales)
    np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="an affine last layer"):
        nth.nngp(Shared(3, jax.random.key(0)), problem)


def test_modes_decay_with_their_time_scales():
    problem = make_problem(3, 1, outputs=2)
    network = make_network(8, 1, outputs=2)
    kernels = nth.kernels(network, problem, order=2)
    actual = nth.spectrum(kernels)
    t = float(actual.time_scales[1])
    solution = nth.integrate(nth.DenseHierarchy(kernels, problem), [0.0, t])
    along = np.einsum(
        "snc,tnc->ts", actual.modes, solution.train - problem.y_train[None]
    )
    rates = np.log(np.abs(along[0] / along[1])) / t
    np.testing.assert_allclose(rates, 1 / actual.time_scales, rtol=1e-5)
    np.testing.assert_allclose(actual.eigenvalues, 3 * rates, rtol=1e-5)


def test_a_zero_eigenvalue_has_an_infinite_time_scale():
    problem = nth.Problem(jnp.ones((2, 3)), jnp.ones(2))  # a repeated point
    actual = nth.spectrum(nth.kernels(make_network(), problem, order=2))
    assert actual.time_scales[1] == jnp.inf
    rows = nth.kernels(make_network(), problem, order=2, rows=[0])
    with pytest.raises(ValueError, match=r"formed with rows=\.\.\."):
        nth.spectrum(rows)
    kernels = nth.kernels(make_network(), problem, order=2)
    bad = nth.Kernels((kernels[1], kernels[2].at[1, 1].set(jnp.nan)))
    with pytest.raises(ValueError, match="kernels have NaN or infinite entries"):
        nth.spectrum(bad)
