"""`until_error` and `restart` in discrete training, against the trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem

import nth

PROBLEM, NETWORK = make_problem(4, 2), make_network(16, 1)
STEPS = [1, 5, 20, 60, 100]
LIMIT = 1e-2
OPTIMIZERS = {
    "SGD": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "weight decay": optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.3)),
    "Adam": optax.adam(1e-2, eps=1e-4),
}

# The network is narrow, and plain levels leave their window.
pytestmark = pytest.mark.filterwarnings(
    "ignore::nth.AccuracyWarning", "ignore::nth.WindowWarning"
)


def solve(optimizer=OPTIMIZERS["SGD"], order=3, steps=STEPS, **options):
    options = {"until_error": LIMIT, "restart": True, "progress": False, **options}
    return nth.solve_discrete(
        NETWORK, PROBLEM, steps, optimizer, order=order, **options
    )


def outputs(solution):
    return np.concatenate([solution.train, solution.test], axis=1)


def rms(values):
    return np.sqrt(np.mean(values**2, axis=1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restarts_keep_the_error_below_the_tolerance(name):
    optimizer = OPTIMIZERS[name]
    truth = outputs(nth.train(NETWORK, PROBLEM, STEPS, optimizer))
    plain = solve(optimizer, until_error=None, restart=False)
    assert plain.restarts is None
    assert rms(outputs(plain) - truth)[-1] > 1.5 * LIMIT
    solution = solve(optimizer)
    assert solution.result == nth.RESULTS.successful
    assert np.all(rms(outputs(solution) - truth) < LIMIT)
    assert np.all(solution.error_estimate <= LIMIT)
    assert np.all(np.diff(solution.error_estimate) > 0)
    assert solution.restarts is not None
    assert len(solution.restarts) > 1
    assert np.all(np.diff(solution.restarts) > 0)


def test_a_restart_at_each_step_is_the_trained_network_to_second_order():
    """A part of one step has only the curvature of that step as its error, and the
    optimizer's momentum is carried over."""
    optimizer = optax.sgd(1e-3, momentum=0.9)
    truth = nth.train(NETWORK, PROBLEM, 8, optimizer).train[-1]
    plain = solve(optimizer, 2, 8, until_error=None, restart=False).train[-1]
    solution = solve(optimizer, 2, 8, until_error=1e-12)
    assert solution.restarts is not None
    assert len(solution.restarts) == 7
    assert solution.result == nth.RESULTS.error_reached
    hierarchy = nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=2)
    reached = hierarchy.predict(solution.state, PROBLEM.x_train)
    assert jnp.linalg.norm(reached - truth) < 0.2 * jnp.linalg.norm(plain - truth)


def test_without_restart_values_end():
    whole = solve(order=2, until_error=None, restart=False)
    ended = solve(order=2, restart=False)
    within = np.asarray(whole.error_estimate) <= LIMIT
    assert 0 < np.sum(within) < len(STEPS)
    assert ended.result == nth.RESULTS.error_reached
    np.testing.assert_array_equal(outputs(ended)[within], outputs(whole)[within])
    assert np.all(np.isnan(outputs(ended)[~within]))


def test_state_and_save_fn_hold_what_is_expanded_around():
    hierarchy = nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=3)
    solution = solve(
        save_fn=lambda step, state, args: hierarchy.predict(state, PROBLEM.x_train)
    )
    np.testing.assert_allclose(solution.saved, solution.train, atol=1e-12)
    predicted = hierarchy.predict(solution.state, PROBLEM.x_test)
    np.testing.assert_allclose(predicted, solution.test[-1], atol=1e-12)


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    from nth._discrete import run_options

    file = tmp_path / "run.npz"
    reached = run_options.Progress.reached

    def interrupted(self, state, done):
        reached(self, state, done)
        if done >= 40:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_options, "WRITE_INTERVAL", 0.0)
        patch.setattr(run_options.Progress, "reached", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solve(checkpoint=file)
    assert file.exists()
    resumed, whole = solve(checkpoint=file), solve()
    np.testing.assert_array_equal(resumed.restarts, whole.restarts)
    np.testing.assert_array_equal(outputs(resumed), outputs(whole))


def test_float32_and_batches():
    x, y = PROBLEM.x_train.astype(np.float32), PROBLEM.y_train.astype(np.float32)
    problem = nth.Problem(x, y)
    network = make_network(16, 1, dtype=jnp.float32)
    options = {"batch_size": 2, "key": jax.random.key(0)}
    optimizer = optax.adam(1e-2, eps=1e-3)
    truth = nth.train(network, problem, 40, optimizer, **options)
    solution = nth.solve_discrete(
        network,
        problem,
        40,
        optimizer,
        order=3,
        until_error=1e-2,
        restart=True,
        **options,
    )
    assert solution.train.dtype == np.float32
    assert np.all(rms(solution.train - truth.train) < LIMIT)


def test_bad_options():
    with pytest.raises(ValueError, match=r"restart needs until_error"):
        solve(until_error=None)
    with pytest.raises(ValueError, match=r"until_error must be above 0; got 0"):
        solve(until_error=0.0)
    with pytest.raises(ValueError, match=r"restart cannot be used under jax\.jit"):
        jax.jit(lambda rate: solve(optax.sgd(rate)).train)(0.1)
