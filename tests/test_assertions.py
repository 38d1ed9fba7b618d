"""The assertions of `nth.testing`: what they let pass, and what they say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nth

TRAIN = np.array([[0.0, 0.0], [1.0, 3.0]])  # two times, two points
TEST = np.array([[0.0], [2.0]])


def solution(train: Any = TRAIN, test: Any = TEST, estimate: float = 0.1, **more: Any):
    """A prediction of an estimated error at the last time."""
    fields: dict[str, Any] = {
        "ts": jnp.array([0.0, 2.0]),
        "train": jnp.asarray(train),
        "test": jnp.asarray(test),
        "loss": jnp.array([1.0, 0.5]),
        "valid_until": jnp.array(jnp.inf),
        "error_estimate": jnp.array([0.0, estimate]),
        "error_share": jnp.array([0.0, 0.1]),
        "result": nth.RESULTS.successful,
        "state": (),
        "counts": {},
        "label": "level-2 hierarchy",
        "method": "dense",
    }
    return nth.Solution(**{**fields, **more})


@pytest.fixture(scope="module")
def comparison() -> nth.Comparison:
    """Errors 0.2 and 0.05 of levels 2 and 4 on training points at the last time."""
    levels = {
        p: solution(TRAIN + np.array([[0], [e]])) for p, e in ((2, 0.2), (4, 0.05))
    }
    problem = nth.Problem(np.eye(2), np.zeros(2), np.ones((1, 2)))
    return nth.Comparison(solution(), levels, problem, None)


def test_the_limit_is_the_estimated_error_times_the_margin():
    """Root mean square: errors 0.4 and 0 have 0.4/√2 = 0.283."""
    off = TRAIN[1] + [0.4, 0.0]
    nth.testing.assert_close(off, solution(estimate=0.0943))  # times 3: 0.2829
    with pytest.raises(AssertionError, match=r"2\.83e-01 from the prediction of the l"):
        nth.testing.assert_close(off, solution(estimate=0.0942))
    nth.testing.assert_close(off, solution(estimate=0.0942), margin=3.1)
    nth.testing.assert_close(TRAIN[0], solution(), index=0)
    nth.testing.assert_close(TEST[1] + 0.25, solution(), points="test")
    with pytest.raises(AssertionError, match=r"on test points are 3\.50e-01"):
        nth.testing.assert_close(TEST[1] + 0.35, solution(), points="test")


def test_without_an_estimate_only_rounding_is_allowed():
    reference = solution(estimate=np.nan)
    nth.testing.assert_close(TRAIN[1] + 5e-6, reference)
    with pytest.raises(AssertionError, match=r"error 0\.00e\+00 plus 1e-05"):
        nth.testing.assert_close(TRAIN[1] + 2e-5, reference)
    nth.testing.assert_close(TRAIN[1] + 2e-5, reference, atol=1e-4)


def test_outputs_that_are_not_finite_are_not_close():
    with pytest.raises(AssertionError, match="are nan from"):
        nth.testing.assert_close([jnp.nan, 3.0], solution())


def test_improvement_by_a_factor(comparison):
    nth.testing.assert_improves(comparison, 4, over=2, factor=3.9)
    with pytest.raises(AssertionError, match=r"2\.00e-01: smaller by a factor of 4, n"):
        nth.testing.assert_improves(comparison, 4, over=2, factor=4.1)
    with pytest.raises(AssertionError, match="at 2 the error of 2"):
        nth.testing.assert_improves(comparison, 2, over=4)
    with pytest.raises(AssertionError, match="on test points"):  # equal errors
        nth.testing.assert_improves(comparison, 4, over=2, points="test")


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"outputs has shape \(3,\).*has \(2,\) for train", lambda: (jnp.ones(3), {})),
        (r"index must be .* from -2 to 1; got 2", lambda: (TRAIN[1], {"index": 2})),
        (r"margin must be", lambda: (TRAIN[1], {"margin": 0.0})),
        (r"atol must be", lambda: (TRAIN[1], {"atol": -1.0})),
        (r"points must be", lambda: (TRAIN[1], {"points": "valid"})),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_arguments(message, call):
    outputs, options = call()
    with pytest.raises(ValueError, match=message):
        nth.testing.assert_close(outputs, solution(), **options)


@pytest.mark.usefixtures("without_type_checks")
def test_other_objects_and_late_times(comparison):
    check: Any = nth.testing
    with pytest.raises(ValueError, match="prediction must be a Solution, such as that"):
        check.assert_close(TRAIN[1], TRAIN[1])
    with pytest.raises(ValueError, match="comparison must be a Comparison"):
        check.assert_improves(solution(), 4, over=2)
    with pytest.raises(ValueError, match=r"order must be one of .*\[2, 4\]; got 3"):
        check.assert_improves(comparison, 3, over=2)
    late = solution(valid_until=jnp.array(1.0))
    with pytest.raises(ValueError, match="not valid at 2, after its valid_until 1"):
        check.assert_close(TRAIN[1], late)
    check.assert_close(TRAIN[0], late, index=0)
    with pytest.raises(ValueError, match=r"under jax\.jit"):
        jax.jit(lambda f: check.assert_close(f, solution()))(TRAIN[1])
