"""The matrix-free hierarchy in blocks of points, and at new points."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import make_network, make_problem
from vector_fields import assert_trees_close, flow_to, random_state, rates

import nth

KEY = jax.random.key(0)


class Direction(eqx.Module):
    """A function of x/‖x‖, and NaN at x = 0."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(jnp.tanh(self.w @ (x / jnp.sqrt(jnp.sum(x**2)))))


SMALL, NETWORK = make_problem(3, 1), make_network(4, 1)
TS = np.array([0.5, 2.0])


# ---------------------------------------------------------------- blocks of points


@pytest.mark.parametrize("order", [2, 3])
def test_results_do_not_depend_on_blocks(order):
    """Padding of the last block has no effect, even if f(0) is NaN."""
    problem = make_problem(4, 3)
    network = Direction(jax.random.normal(KEY, (3, 3)))
    assert jnp.isnan(network(jnp.zeros(3)))
    whole = nth.MatrixFreeHierarchy(network, problem, order=order, block_size=7)
    state = random_state(whole)
    expected = rates(whole, state), whole.outputs(state)
    for block_size in (1, 3):  # 3 divides neither 4 nor 7
        parts = nth.MatrixFreeHierarchy(
            network, problem, order=order, block_size=block_size
        )
        actual = rates(parts, state), eqx.filter_jit(parts.outputs)(state)
        assert_trees_close(actual, expected, 1e-12)


def test_results_do_not_depend_on_blocks_of_labels():
    """Blocks contain the targets of their points."""
    problem = make_problem(4, 1, outputs=3, loss=nth.SoftmaxCrossEntropy())
    network = make_network(3, 1, outputs=3)
    whole, parts = (
        nth.MatrixFreeHierarchy(network, problem, order=3, block_size=size)
        for size in (4, 3)
    )
    state = random_state(whole)
    assert_trees_close(rates(parts, state), rates(whole, state), 1e-12)


def test_default_blocks_fit_the_budget(monkeypatch):
    """Blocks of nearly equal size within the budget, of at least one point."""
    from nth._dynamics import batching as _blocks

    problem, network = make_problem(4, 1), make_network(3, 1)

    def size():
        return nth.MatrixFreeHierarchy(network, problem, order=2).block_size

    assert size() == 4
    sizes = []
    for budget in (0, 2**9, 2**10, 2**11, 2**30):
        monkeypatch.setattr(_blocks, "_BLOCK_BYTES", {"cpu": budget})
        monkeypatch.setattr(_blocks, "_BLOCK_BYTES_ELSEWHERE", budget)
        sizes.append(size())
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, 4)


# ---------------------------------------------------------------- new points


@pytest.fixture(scope="module")
def solved():
    tight = diffrax.PIDController(rtol=1e-9, atol=1e-11)
    options: Any = {"method": "matrix-free", "stepsize_controller": tight}
    return nth.solve(NETWORK, SMALL, TS, order=3, **options)


def test_predict_equals_a_solve_with_the_new_points(solved):
    """The predictions for test points that are given at the start."""
    x_new = make_problem(1, 4, seed=7).x_test
    extended = nth.Problem(SMALL.x_train, SMALL.y_train, x_new)
    dense = nth.DenseHierarchy(nth.kernels(NETWORK, extended, order=3), extended)
    expected, _ = flow_to(dense, TS[-1])
    state = solved.state
    for block_size in (4, 3, 1):
        free = nth.MatrixFreeHierarchy(NETWORK, SMALL, order=3, block_size=block_size)
        predicted = free.predict(state, x_new)
        np.testing.assert_allclose(predicted, expected[3:], atol=1e-7)
    np.testing.assert_allclose(
        free.predict(state, x_new[:1]), predicted[:1], atol=1e-12
    )
    assert free.predict(state, x_new[:0]).shape == (0,)
    assert np.max(np.abs(predicted - jax.vmap(NETWORK)(x_new))) > 1e-2


@pytest.mark.parametrize(
    ("x_new", "message"),
    [
        (np.zeros((2, 4)), r"x_new has inputs of shape \(4,\).*of shape \(3,\)"),
        (np.zeros(3), r"x_new has inputs of shape \(\).*of shape \(3,\)"),
        (np.float64(0), "x_new must have shape .*got a scalar"),
        (np.zeros((2, 3), np.float32), "x_new has .*float32.*float64"),
        (np.full((2, 3), np.nan), "x_new has NaN or infinite entries"),
        (np.full((2, 3), np.inf), "x_new has NaN or infinite entries"),
        ([["a", "b", "c"]], "x_new must hold real numbers"),
    ],
)
def test_new_points_must_match_the_training_points(x_new, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    hierarchy = nth.MatrixFreeHierarchy(make_network(3, 1), make_problem(), order=2)
    with pytest.raises(ValueError, match=message):
        hierarchy.predict(hierarchy.initial_state(), x_new)


@pytest.mark.parametrize(
    ("options", "state_of", "message"),
    [
        (
            {},
            {"order": 2},
            r"state has order 2.*order 3.*Hierarchy\(\.\.\., order=2\)",
        ),
        ({}, {"order": 2, "weight_decay": 0.1}, "state has order 2"),
        (
            {},
            {"network": make_network(3, 2)},
            "state differs in structure, shapes or dtypes",
        ),
    ],
)
def test_a_state_of_another_solve_is_refused(options, state_of, message):
    """Two coefficients may belong to order 3, or to order 2 with weight decay."""
    options_of_state = {"network": NETWORK, "order": 3, **state_of}
    state = nth.MatrixFreeHierarchy(
        options_of_state.pop("network"),
        SMALL,
        order=options_of_state.pop("order"),
        **options_of_state,
    ).initial_state()
    hierarchy = nth.MatrixFreeHierarchy(NETWORK, SMALL, order=3, **options)
    with pytest.raises(ValueError, match=message):
        hierarchy.predict(state, SMALL.x_train)


def test_values_that_are_not_states_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    hierarchy = nth.MatrixFreeHierarchy(NETWORK, SMALL, order=2)
    dense = nth.DenseHierarchy(nth.kernels(NETWORK, SMALL, order=2), SMALL)
    states: Any = (None, dense.initial_state(), hierarchy.params, (hierarchy.params,))
    for state in states:
        with pytest.raises(ValueError, match=r"state must be .* Solution\.state"):
            hierarchy.predict(state, SMALL.x_train)
