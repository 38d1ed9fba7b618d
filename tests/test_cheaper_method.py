"""The choice between the dense and the matrix-free form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from conftest import make_network, make_problem

import nth
from nth import _solve
from nth._internal.jaxpr import multiplications
from nth._network.base import trainable

SMALL, NETWORK = make_problem(3, 1), make_network(4, 1)


def points(n):
    return nth.Problem(np.ones((n, 2)), np.ones(n))


def chosen(network, problem, order, method: Any = "auto"):
    """The method that `nth.solve` chooses."""
    checked = trainable(network, problem, eqx.is_inexact_array)
    return _solve.hierarchies(checked, [1.0], [order], method)[order].method


def test_auto_is_dense_for_few_points():
    network = make_network(64, 2)
    for order in (2, 3):
        assert nth.cheaper_method(network, SMALL, order=order) == "dense"
        assert chosen(network, SMALL, order) == "dense"


def test_auto_is_matrix_free_where_kernels_do_not_fit(monkeypatch):
    monkeypatch.setattr(_solve, "available_bytes", lambda: 100)
    assert nth.cheaper_method(NETWORK, SMALL, order=2) == "matrix-free"
    assert chosen(NETWORK, SMALL, 2) == "matrix-free"
    for requested in ("dense", "matrix-free"):
        assert chosen(NETWORK, SMALL, 2, requested) == requested


def test_auto_switches_to_matrix_free_earlier_at_higher_levels():
    network = make_network(64, 2, 2)
    dense = {}
    for order in (2, 3, 4):
        names = [
            nth.cheaper_method(network, points(n), order=order)
            for n in 3 ** np.arange(8)
        ]
        few = dense[order] = names.count("dense")
        assert names == ["dense"] * few + ["matrix-free"] * (8 - few)
    assert 8 > dense[2] > dense[3] > dense[4] > 0


def test_auto_switches_to_matrix_free_earlier_with_rates_within_arrays():
    """They exclude the layerwise algorithm for kernels, which costs less."""
    network = make_network(64, 2, 2)
    rates = jax.tree.map(jnp.ones_like, eqx.filter(network, eqx.is_inexact_array))
    layerwise, generic = (
        [
            nth.cheaper_method(network, points(n), order=3, learning_rates=given)
            for n in range(5, 95, 10)
        ].count("dense")
        for given in (2.0, rates)
    )
    assert 9 > layerwise > generic > 0


def convolution(positions: int):
    """A network of 8 filters of 3 entries, used at so many positions."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = (jax.random.normal(keys[0], (8, 1, 3)), jax.random.normal(keys[1], (8,)))
    x = jax.random.normal(keys[2], (40, positions + 2))

    def apply(params, x):
        z = jax.lax.conv_general_dilated(x[None, None], params[0], (1,), "VALID")
        return jnp.mean(jnp.tanh(z[0]), axis=1) @ params[1]

    return nth.from_apply(apply, params), nth.Problem(x, jnp.ones(40))


def test_parameters_that_are_used_more_often_favor_the_dense_form():
    """Their number is the same, and so are the products of their gradients."""
    names = [nth.cheaper_method(*convolution(2**k), order=3) for k in range(0, 13, 3)]
    dense = names.count("dense")
    assert names == ["matrix-free"] * (5 - dense) + ["dense"] * dense
    assert 5 > dense > 0


def counted(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes]
    return multiplications(jax.make_jaxpr(function)(*arguments))


def test_multiplications_are_counted():
    assert counted(jnp.matmul, (2, 3), (3, 5)) == 30
    batched = jax.vmap(jnp.matmul)
    assert counted(batched, (7, 2, 3), (7, 3, 5)) == 7 * 30
    assert counted(jax.jit(batched), (7, 2, 3), (7, 3, 5)) == 7 * 30

    def convolved(x, w):  # 6 groups of 2 channels, 5 filters each, a stride of 2
        return jax.lax.conv_general_dilated(x, w, (2,), "VALID", feature_group_count=6)

    assert counted(convolved, (1, 12, 9), (30, 2, 3)) == 30 * 4 * 2 * 3


def test_multiplications_of_loops_and_branches_are_counted():
    def powers(w, x):
        return jax.lax.scan(lambda x, _: (w @ x, None), x, length=10)[0]

    def branches(w, x):
        three = (lambda x: w @ x, lambda x: w @ w @ x, jnp.ones_like)
        return jax.lax.switch(jnp.argmax(x), three, x)

    assert counted(powers, (4, 4), (4,)) == 10 * 16
    assert 64 + 16 <= counted(branches, (4, 4), (4,)) < 64 + 2 * 16


def test_auto_chooses_without_forming_a_kernel():
    """K⁽⁴⁾ on 2000 points would take 128 TB."""
    network, problem = make_network(3, 1, 2), points(2000)
    assert nth.cheaper_method(network, problem, order=4) == "matrix-free"
    assert chosen(network, problem, 4) == "matrix-free"
