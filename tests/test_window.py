"""The end of the validity window of a level."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
Call = Callable[[], Any]
pytestmark = pytest.mark.usefixtures("without_type_checks")

SUCCESSFUL = nth.RESULTS.successful


def expect(message: str, call: Call) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


SCALE, SPACING = 5.0, 0.125
TIMES = jnp.arange(0.0, 16.0, SPACING)


def with_large_targets(seed: int) -> tuple[Any, Any]:
    """A narrow network with large targets, for which level 3 soon leaves its window."""
    problem = make_problem(n=3, q=1, seed=seed)
    targets = SCALE * problem.y_train
    return (
        make_network(4, 1, seed=seed),
        nth.Problem(problem.x_train, targets, problem.x_test),
    )


@pytest.fixture(scope="module")
def comparison() -> Any:
    """The trained network and level 2 of the first problem of `with_large_targets`."""
    return nth.compare(*with_large_targets(0), TIMES, (2,), method="dense")


def test_levels_and_points_of_a_comparison_are_checked(comparison: Any) -> None:
    expect(
        "order must be one of the compared levels, [2]; got 7.",
        lambda: comparison.error(7),
    )
    message = "points must be one of 'train', 'test'; got 'tets'. Did you mean 'test'?"
    expect(message, lambda: comparison.error(2, "tets"))
    expect(message, lambda: comparison.accuracy(2, "tets"))


def test_errors_without_test_points(comparison: Any) -> None:
    def tests(c: Any) -> tuple[Any, ...]:
        return (c.problem.x_test, c.truth.test, c.solutions[2].test)

    problem, truth, solution = tests(comparison)
    less = eqx.tree_at(tests, comparison, (problem[:0], truth[:, :0], solution[:, :0]))
    message = "points: problem has no test points; give it an x_test."
    expect(message, lambda: less.error(2))
    assert np.isfinite(less.error(2, "train")).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_window_ends_where_the_loss_increases(seed: int) -> None:
    """It ends where the predicted loss first increases; divergence leaves NaN."""
    with pytest.warns(typed_nth.WindowWarning, match="level-3 .* left its window") as w:
        solution = nth.solve(*with_large_targets(seed), TIMES, order=3)
    assert len(w) == 1
    assert w[0].filename == __file__  # the user's line, not the library's
    assert f"t = {float(solution.valid_until):.4g}:" in str(w[0].message)
    loss = np.asarray(solution.loss)
    lowest = np.argmax(np.diff(loss) > 0)
    assert lowest > 0
    assert abs(solution.valid_until - TIMES[lowest]) < 2 * SPACING
    assert solution.result == nth.RESULTS.diverged
    reached = np.asarray(solution.ts <= solution.stats["last_time"])
    assert not reached.all()
    for values in (solution.train, solution.test, solution.loss):
        assert np.isfinite(values[reached]).all()
        assert np.isnan(values[~reached]).all()


@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")  # near the end of the window
def test_window_does_not_depend_on_the_times() -> None:
    """The window does not depend on the requested times."""
    with pytest.warns(typed_nth.WindowWarning):
        many = nth.solve(*with_large_targets(0), TIMES, order=3)
    with pytest.warns(typed_nth.WindowWarning):
        one = nth.solve(*with_large_targets(0), TIMES[-1:], order=3)
    np.testing.assert_allclose(one.valid_until, many.valid_until, rtol=1e-6)
    assert np.isnan(one.loss).all()
    before = many.valid_until / 2
    inside = nth.solve(*with_large_targets(0), before[None], order=3)
    assert inside.valid_until == np.inf
    assert np.isfinite(inside.loss).all()


def test_window_under_jit_equals_the_eager_one() -> None:
    net, problem = with_large_targets(0)

    @eqx.filter_jit
    def traced(targets: Any) -> Any:
        with_test = nth.Problem(problem.x_train, targets, problem.x_test)
        return nth.solve(net, with_test, TIMES, order=3)

    def run() -> Any:
        solution = jax.block_until_ready(traced(problem.y_train))
        jax.effects_barrier()
        return solution

    with pytest.warns(typed_nth.WindowWarning, match="left its window") as w:
        jitted = run()
    assert len(w) == 1
    with pytest.warns(typed_nth.WindowWarning):
        eager = nth.solve(*with_large_targets(0), TIMES, order=3)
    np.testing.assert_allclose(jitted.valid_until, eager.valid_until, rtol=1e-6)


def test_the_trained_network_has_no_window(comparison: Any) -> None:
    """The loss never increases, nor does it for a constant kernel."""
    for solution in (comparison.truth, comparison.solutions[2]):
        assert solution.valid_until == np.inf
        assert solution.result == SUCCESSFUL
        assert np.all(np.diff(solution.loss) <= 1e-9)
        assert solution.loss[-1] < solution.loss[0]
