"""Kernels against sums of explicit derivative arrays, and against closed forms."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth


def brute_force(network, problem, filter_spec=eqx.is_inexact_array):
    """K⁽²⁾, K⁽³⁾, K⁽⁴⁾ over flat slots, from J, H and the third derivative of f(θ)."""
    params, frozen = eqx.partition(network, filter_spec)
    theta, unravel = ravel_pytree(params)

    def f(theta):
        return jax.vmap(eqx.combine(unravel(theta), frozen))(problem.x).ravel()

    @jax.jit
    def derivatives(theta):
        j, h = jax.jacfwd(f), jax.jacfwd(jax.jacfwd(f))
        return j(theta), h(theta), jax.jacfwd(h)(theta)

    j, h, t = map(np.asarray, derivatives(theta))
    n = j.shape[0] * problem.n_train // (problem.n_train + problem.n_test)
    jn, hn, tn = j[:n], h[:n], t[:n]
    total = partial(np.einsum, optimize=True)
    k2 = total("ai,bi->ab", j, jn)
    k3 = total("aij,bi,cj->abc", h, jn, jn) + total("ai,bij,cj->abc", j, hn, jn)
    k4 = (
        total("aijk,bi,cj,dk->abcd", t, jn, jn, jn)
        + total("aij,bik,dk,cj->abcd", h, hn, jn, jn)
        + total("aij,bi,cjk,dk->abcd", h, jn, hn, jn)
        + total("aik,dk,bij,cj->abcd", h, jn, hn, jn)
        + total("ai,bijk,cj,dk->abcd", j, tn, jn, jn)
        + total("ai,bij,cjk,dk->abcd", j, hn, hn, jn)
    )
    return k2, k3, k4


def flat(kernel, out_size):
    """A kernel with each slot `(points, *out)` as one axis."""
    if out_size == 1:
        return kernel
    shape = kernel.shape
    return kernel.reshape([a * b for a, b in zip(shape[::2], shape[1::2], strict=True)])


def check(network, problem, out_size=1, filter_spec=eqx.is_inexact_array):
    formed = nth.kernels(network, problem, order=4, filter_spec=filter_spec)
    for r, expected in enumerate(brute_force(network, problem, filter_spec), start=2):
        np.testing.assert_allclose(flat(formed[r], out_size), expected, atol=1e-10)
    outputs = jax.vmap(network)(problem.x)
    np.testing.assert_allclose(formed[1], outputs, atol=1e-12)


@pytest.mark.parametrize(
    ("parameterization", "depth"), [("nth", 2), ("ntk", 1), ("standard", 1)]
)
def test_scalar_mlp_equals_brute_force(parameterization, depth):
    options = {"parameterization": parameterization, "use_bias": True, "sigma_w": 1.3}
    network = make_network(3, depth, 2, **options)
    check(network, make_problem(3, 2, 2))


def test_vector_mlp_equals_brute_force():
    check(make_network(3, 1, 2, outputs=2), make_problem(2, 1, 2, outputs=2), 2)


def test_any_module_equals_brute_force():
    check(Shared(2, jax.random.key(0)), make_problem(3, 1, 2))


def test_convolution_equals_brute_force():
    key1, key2 = jax.random.split(jax.random.key(0))
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv1d(1, 2, 3, key=key1),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(4, "scalar", key=key2),
        ]
    )
    x = make_problem(3, 1, 4).x[:, None]
    check(network, nth.Problem(x[:2], jnp.ones(2), x[2:]))


def test_frozen_parameters_are_excluded(problem):
    network = make_network(3, 1)
    spec = jax.tree.map(lambda _: False, network)
    spec = eqx.tree_at(lambda net: net.weights[0], spec, True)
    check(network, problem, filter_spec=spec)


@pytest.mark.parametrize("batched", [False, True])
def test_apply_function_is_a_network(problem, batched):
    params = {"w": jnp.asarray([[0.3, -1.0, 0.2], [1.1, 0.4, -0.5]]), "a": jnp.ones(2)}

    def apply(params, x):
        return jnp.tanh(x @ params["w"].T) @ params["a"]

    network = nth.from_apply(apply, params, batched=batched)
    check(network, problem)


def two_layer_linear(width, seed=0):
    """f = N^{-1/2} Σ u_i v_i x at the one input x = 1."""
    network = nth.MLP(
        1,
        width,
        1,
        activation="linear",
        parameterization="ntk",
        key=jax.random.key(seed),
    )
    return network, nth.Problem(jnp.ones((1, 1)), jnp.zeros(1))


def test_kernels_of_a_linear_network_repeat():
    """Lewkowycz et al. (2020): K⁽ʳ⁺²⁾ = (4/N) K⁽ʳ⁾ for every r."""
    width = 5
    formed = nth.kernels(*two_layer_linear(width), order=7)
    for r in range(1, 6):
        np.testing.assert_allclose(
            formed[r + 2].ravel(), 4 / width * formed[r].ravel(), rtol=1e-12
        )


def test_kernels_are_symmetric_in_their_first_two_slots_only(problem):
    k = nth.kernels(make_network(4, 2), problem, order=4)
    k3 = k[3][: problem.n_train]
    np.testing.assert_allclose(k3, jnp.swapaxes(k3, 0, 1), atol=1e-12)
    assert jnp.max(jnp.abs(k3 - jnp.swapaxes(k3, 1, 2))) > 1e-3
    assert jnp.max(jnp.abs(k[4] - jnp.swapaxes(k[4], 2, 3))) > 1e-3


def test_results_do_not_depend_on_block_size(problem):
    network = make_network(3, 1, outputs=2)
    problem = make_problem(outputs=2)
    whole = nth.kernels(network, problem, order=3)
    for block_size in (1, 3, 5):  # neither divides the 8 slots evenly
        parts = nth.kernels(network, problem, order=3, block_size=block_size)
        np.testing.assert_allclose(parts[3], whole[3], atol=1e-14)


def test_traced_kernels_equal_eager_ones(problem):
    network = make_network(3, 1)
    eager = nth.kernels(network, problem, order=3, block_size=5)
    traced = jax.jit(lambda net: nth.kernels(net, problem, order=3, block_size=5))(
        network
    )
    np.testing.assert_allclose(traced[3], eager[3], atol=1e-14)


@pytest.mark.parametrize("kind", ["chain", "any network"])
def test_new_data_of_one_shape_is_not_traced_again(kind, problem):
    """For outputs and kernels."""
    traces = []

    def activation(x):
        traces.append(x.shape)
        return jnp.tanh(x)

    def network(seed):
        chain = make_network(3, 1, seed=seed, activation=activation)
        if kind == "chain":
            return chain
        apply = lambda p, x: p["a"] @ activation(p["w"] @ x)  # noqa: E731
        params = {"w": chain.weights[0], "a": chain.weights[1][0]}
        return nth.from_apply(functions.setdefault("apply", apply), params)

    functions = {}
    nth.kernels(network(0), problem, order=2)
    first = len(traces)
    assert first > 0
    nth.kernels(network(1), make_problem(seed=1), order=2)
    assert len(traces) == first
    nth.kernels(network(1), make_problem(n=5, seed=1), order=2)
    assert len(traces) > first


@pytest.mark.parametrize("kind", ["chain", "any network"])
def test_kernels_of_rows_are_rows_of_the_kernels(kind, problem):
    network = make_network(4, 2) if kind == "chain" else Shared(3, jax.random.key(0))
    whole = nth.kernels(network, problem, order=3)
    rows = [5, 0, 2]
    part = nth.kernels(network, problem, order=3, rows=rows)
    for r in (1, 2, 3):
        np.testing.assert_allclose(part[r], whole[r][jnp.array(rows)], 1e-12, 1e-14)
    with pytest.raises(ValueError, match=r"kernels were formed with rows=\.\.\."):
        nth.DenseHierarchy(part, problem)
    with pytest.raises(ValueError, match="rows must be at least one index from 0 to 5"):
        nth.kernels(network, problem, order=2, rows=[6])
    with pytest.raises(ValueError, match="a mask becomes indices"):
        nth.kernels(network, problem, order=2, rows=np.array([0.5]))


def test_saved_kernels_round_trip(problem, tmp_path):
    network, path = make_network(4, 1), tmp_path / "kernels.npz"
    formed = nth.kernels(network, problem, order=3)
    formed.save(path, network, problem)
    other_targets = nth.Problem(problem.x_train, -problem.y_train, problem.x_test)
    loaded = nth.Kernels.load(path, network, other_targets)
    assert loaded.order == 3
    for actual, expected in zip(loaded, formed, strict=True):
        np.testing.assert_array_equal(actual, expected)
    hierarchy = nth.DenseHierarchy(loaded, other_targets)
    rates = hierarchy.vector_field(jnp.zeros(()), hierarchy.initial_state(), None)
    assert all(bool(jnp.all(jnp.isfinite(rate))) for rate in rates)


def test_foreign_and_damaged_files_are_refused(problem, tmp_path):
    network, path = make_network(4, 2), tmp_path / "kernels.npz"
    formed = nth.kernels(network, problem, order=2)
    with pytest.raises(ValueError, match="are not of this network"):
        formed.save(path, make_network(4, 2, seed=1), problem)
    assert not path.exists()
    formed.save(path, network, problem)
    frozen = jax.tree.map(lambda _: False, network)
    frozen = eqx.tree_at(lambda net: net.weights[0], frozen, True)
    for net, points, spec in (
        (make_network(4, 2, seed=1), problem, eqx.is_inexact_array),
        (network, make_problem(seed=1), eqx.is_inexact_array),
        (network, problem, frozen),
    ):
        with pytest.raises(ValueError, match="holds kernels of another network"):
            nth.Kernels.load(path, net, points, filter_spec=spec)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-9] + b"x" * 9, b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            nth.Kernels.load(path, network, problem)
    with pytest.raises(ValueError, match="there is no file"):
        nth.Kernels.load(tmp_path / "none.npz", network, problem)


def test_kernels_are_shared_under_vmap_over_targets(problem):
    network = make_network(4, 1)
    formed = nth.kernels(network, problem, order=2)
    ts = jnp.linspace(0.0, 3.0, 4)
    targets = np.random.default_rng(0).choice([-1.0, 1.0], size=(3, problem.n_train))

    @jax.vmap
    def predict(y):
        relabeled = nth.Problem(problem.x_train, y, problem.x_test)
        return nth.integrate(nth.DenseHierarchy(formed, relabeled), ts).test

    many = predict(jnp.asarray(targets))
    for y, actual in zip(targets, many, strict=True):
        relabeled = nth.Problem(problem.x_train, y, problem.x_test)
        expected = nth.solve(network, relabeled, ts, order=2, method="matrix-free")
        np.testing.assert_allclose(actual, expected.test, atol=1e-6)
