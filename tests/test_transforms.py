"""jit, vmap over keys, grad of a solve, and float32."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth

TS = np.array([0.5, 2.0])


def predict(network, problem):
    """The dense form; test_matrix_free.py has these tests of the matrix-free form."""
    return nth.solve(network, problem, TS, order=3, method="dense")


def train(network, problem):
    return nth.gradient_flow(network, problem, TS)


def test_jit_and_vmap_over_keys_equal_a_loop(problem):
    def from_key(key):
        network = nth.MLP(3, 4, 1, key=key)
        level, truth = predict(network, problem), train(network, problem)
        return level.test, truth.test, level.valid_until

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(from_key))(keys)
    for i, key in enumerate(keys):
        for batched, single in zip(together, from_key(key), strict=True):
            np.testing.assert_allclose(batched[i], single, atol=1e-8)


def test_vmap_over_targets_shares_kernels(problem):
    formed = nth.kernels(make_network(4, 1), problem, order=3)

    def with_targets(y):
        other = eqx.tree_at(lambda p: p.y_train, problem, y)
        return nth.integrate(nth.DenseHierarchy(formed, other), TS).test

    targets = jnp.stack([problem.y_train, 2 * problem.y_train])
    together = jax.vmap(with_targets)(targets)
    for batched, y in zip(together, targets, strict=True):
        np.testing.assert_allclose(batched, with_targets(y), atol=1e-8)


@pytest.mark.parametrize("solve", [predict, train])
def test_gradient_with_respect_to_a_weight_scale(problem, solve):
    def total(scale):
        network = make_network(4, 1, sigma_w=scale)
        return jnp.sum(solve(network, problem).test)

    step = 1e-4
    expected = (total(1.2 + step) - total(1.2 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(1.2), expected, rtol=1e-5)


def as_float32(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree
    )


@pytest.mark.parametrize(
    ("solve", "outputs", "loss"),
    [(train, None, nth.SquaredError()), (predict, 2, nth.SoftmaxCrossEntropy())],
)
def test_float32_is_kept_and_agrees_with_float64(solve, outputs, loss):
    problem = make_problem(outputs=outputs, loss=loss)
    network = make_network(4, 1, outputs=outputs)
    solution = solve(as_float32(network), as_float32(problem))
    for array in (solution.ts, solution.train, solution.test, solution.loss):
        assert array.dtype == jnp.float32
    expected = solve(network, problem)
    np.testing.assert_allclose(solution.test, expected.test, atol=2e-4)


def test_comparisons_in_float32_have_a_table(problem):
    small = as_float32(make_network(4, 1)), as_float32(problem)
    assert "p = 2" in str(nth.compare(*small, TS, (2,), method="dense"))


def test_nan_under_jit_is_an_error(problem):
    @jax.jit
    def solve(x):
        bad = nth.Problem(x, problem.y_train)
        return nth.kernels(make_network(3, 1), bad, order=2)[1]

    with pytest.raises(Exception, match="x_train has NaN or infinite entries"):
        solve(problem.x_train.at[0, 0].set(jnp.nan)).block_until_ready()


def test_traced_scale_of_the_ntk_parameterization_is_refused():
    with pytest.raises(ValueError, match=r"sigma_w.* must be numbers there"):
        jax.jit(
            lambda s: make_network(3, 1, parameterization="ntk", sigma_w=s).weights
        )(1.0)


def test_a_batch_of_solves_warns_once_and_compiles_as_one(problem):
    """Without care vmap would repeat the warning for each solve."""
    network = make_network(3, 1)
    kernels = nth.kernels(network, problem, order=3)

    def end_of_window(scale):
        scaled = nth.Problem(problem.x_train, scale * problem.y_train, problem.x_test)
        dynamics = nth.DenseHierarchy(kernels, scaled)
        return nth.integrate(dynamics, [50.0], throw=False).valid_until

    scales = jnp.linspace(1.0, 30.0, 5)
    solve = jax.jit(lambda scales: jax.vmap(end_of_window)(scales))
    with pytest.warns(
        nth.WindowWarning, match="the worst of 5 in this batch"
    ) as caught:
        until = jax.block_until_ready(solve(scales))
    assert len(caught) == 1
    assert f"t = {jnp.min(until):.4g}" in str(caught[0].message)
