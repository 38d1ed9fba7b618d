"""The choice between the dense and the matrix-free form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from conftest import make_network, make_problem

import nth
from nth import _solve
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
        nth.cheaper_method(network, points(27), order=3, learning_rates=given)
        for given in (2.0, rates)
    )
    assert (layerwise, generic) == ("dense", "matrix-free")


def test_auto_chooses_without_forming_a_kernel():
    """K⁽⁴⁾ on 2000 points would take 128 TB."""
    network, problem = make_network(3, 1, 2), points(2000)
    assert nth.cheaper_method(network, problem, order=4) == "matrix-free"
    assert chosen(network, problem, 4) == "matrix-free"
