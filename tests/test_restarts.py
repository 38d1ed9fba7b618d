"""`until_error` and `restart`, against the trained network."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth

PROBLEM, NETWORK = make_problem(4, 2), make_network(16, 1)
TS = np.array([0.5, 3.0, 20.0])
LIMIT = 1e-2


def solve(order, ts=TS, **options):
    options = {"until_error": LIMIT, "restart": True, "progress": False, **options}
    return nth.solve(NETWORK, PROBLEM, ts, order=order, **options)


def outputs(solution):
    return np.concatenate([solution.train, solution.test], axis=1)


@pytest.fixture(scope="module")
def truth():
    return nth.gradient_flow(NETWORK, PROBLEM, TS)


@pytest.fixture(scope="module")
def solutions():
    return {p: solve(p) for p in (2, 3)}


def rms(values):
    return np.sqrt(np.mean(values**2, axis=1))


def test_restarts_keep_the_error_below_the_tolerance(truth, solutions):
    for p, solution in solutions.items():
        assert solution.result == nth.RESULTS.successful
        assert solution.stats["method"] == "matrix-free"
        assert np.all(rms(outputs(solution) - outputs(truth)) < LIMIT), p
        assert np.all(solution.error_estimate < 1.1 * LIMIT)
        assert np.all(np.diff(solution.error_estimate) > 0)
        assert np.all(np.diff(solution.restarts) > 0)
        assert solution.restarts[0] > 0
        assert solution.restarts[-1] < TS[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nth.WindowWarning)
        plain = nth.solve(NETWORK, PROBLEM, TS, order=2)
    assert rms(outputs(plain) - outputs(truth))[-1] > 2 * LIMIT
    assert plain.restarts is None
    assert len(solutions[2].restarts) > len(solutions[3].restarts) > 0


def test_state_and_save_fn_include_the_expansion_point(solutions):
    hierarchy = nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=3)
    saved = solve(
        3, save_fn=lambda t, state, args: hierarchy.predict(state, PROBLEM.x_train)
    )
    np.testing.assert_allclose(saved.saved, saved.train, atol=1e-12)
    np.testing.assert_allclose(saved.train, solutions[3].train, atol=1e-12)
    predicted = hierarchy.predict(solutions[3].state, PROBLEM.x_test)
    np.testing.assert_allclose(predicted, solutions[3].test[-1], atol=1e-12)


def test_an_interrupted_solve_resumes_exactly(solutions, tmp_path, monkeypatch):
    from nth._internal import checkpoint

    file = tmp_path / "run.npz"
    writes = []
    original = checkpoint.Checkpoint.write

    def write(self, tree):
        if len(writes) == 2:
            raise KeyboardInterrupt
        writes.append(None)
        original(self, tree)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "write", write)
        with pytest.raises(KeyboardInterrupt):
            solve(2, checkpoint=file)
    resumed = solve(2, checkpoint=file)
    np.testing.assert_array_equal(resumed.restarts, solutions[2].restarts)
    np.testing.assert_array_equal(outputs(resumed), outputs(solutions[2]))
    np.testing.assert_array_equal(resumed.error_estimate, solutions[2].error_estimate)
    resumed.save(tmp_path / "solution.npz")
    loaded = nth.Solution.load(tmp_path / "solution.npz")
    assert loaded.restarts is not None
    np.testing.assert_array_equal(loaded.restarts, resumed.restarts)
    with pytest.raises(ValueError, match="belongs to another solve"):
        solve(2, checkpoint=file, until_error=2 * LIMIT)


@pytest.mark.parametrize("method", ["dense", "matrix-free"])
def test_without_restart_the_solve_ends(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nth.WindowWarning)
        whole = nth.solve(NETWORK, PROBLEM, TS, order=3, method=method)
        ended = nth.solve(
            NETWORK, PROBLEM, TS, order=3, method=method, until_error=LIMIT
        )
    within = np.asarray(whole.error_estimate) <= LIMIT
    assert 0 < np.sum(within) < len(TS)
    assert ended.result == nth.RESULTS.error_reached
    np.testing.assert_allclose(
        outputs(ended)[within], outputs(whole)[within], atol=1e-5
    )
    assert np.all(np.isnan(outputs(ended)[~within]))
    assert np.all(np.isnan(ended.loss[~within]))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"restart needs until_error"):
        solve(3, until_error=None)
    with pytest.raises(ValueError, match=r"until_error must be above 0; got 0"):
        solve(3, until_error=0.0)
    with pytest.raises(ValueError, match=r'restart: .*Use method="matrix-free"'):
        solve(3, method="dense")
    with pytest.raises(ValueError, match=r"until_error: the network has no estimate"):
        nth.gradient_flow(NETWORK, PROBLEM, TS, until_error=LIMIT)
    hierarchy = nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=2)
    with pytest.raises(ValueError, match=r"restart cannot be used under jax\.jit"):
        jax.jit(
            lambda t: (
                nth.integrate(
                    hierarchy, jnp.stack([t]), until_error=1e-2, restart=True
                ).train
            )
        )(1.0)
