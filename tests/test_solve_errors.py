"""Messages for bad arguments of solves and comparisons, and for failed solves."""

import re
from typing import Any

import numpy as np
import pytest
from small_inputs import CROSS_ENTROPY, Call, X, Y, expect, formed, network, points

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")

SUCCESSFUL = nth.RESULTS.successful


@pytest.fixture(scope="module")
def kernels() -> Any:
    """K(1), K(2), K(3) of a scalar network on three training and one test point."""
    return formed(network(), 3)


@pytest.mark.parametrize("r", [0, -1])
def test_kernels_are_indexed_from_one(kernels: Any, r: int) -> None:
    expect(f"r must be at least 1; got {r}.", lambda: kernels[r])


def test_kernels_are_indexed_up_to_their_order(kernels: Any) -> None:
    with pytest.raises(IndexError, match=r"go up to r = 3; got r = 4\."):
        kernels[4]


def test_kernels_and_problem_of_a_hierarchy_must_match(kernels: Any) -> None:
    def dense(problem: Any, order: Any = None) -> Call:
        return lambda: nth.DenseHierarchy(kernels, problem, order=order)

    fewer = nth.Problem(X[:2], Y[:2], X[3:])
    expect("(4, 3) for K(2), and problem has m = 3 points, n = 2", dense(fewer))
    none = nth.Problem(X[:3], Y)
    expect("m = 3 points, n = 3 for training: form them on its points", dense(none))
    expect("order must be at most 3, the order of kernels; got 4", dense(points(), 4))
    expect("order must be at least 2; got 1", dense(points(), 1))
    expect("order must be an integer of at least 2; got 2.0", dense(points(), 2.0))
    expect("targets of shape (1,) and the network outputs", dense(points(Y[:, None])))
    labels = points([0, 1, 2], CROSS_ENTROPY)
    expect("SoftmaxCrossEntropy takes one output for each of C", dense(labels))


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([], "ts must be a sequence of at least one time; got shape (0,)."),
        ([[0.0, 1.0]], "ts must be a sequence of at least one time; got shape (1, 2)."),
        (1.0, "ts must be a sequence of at least one time; got shape ()."),
        ([1.0, 0.5], "ts must be increasing"),
        ([0.0, 1.0, 1.0], "ts must be increasing"),
        ([1.0, 1.0 + 1e-17], "ts must be increasing, in float64, the dtype"),
        ([0.0, np.nan], "ts must be finite: it has NaN or inf."),
        ([0.0, np.inf], "ts must be finite"),
        ([-1.0, 1.0], "ts must be at least 0, where training begins."),
        ([False, True], "ts must hold numbers; got dtype bool."),
    ],
)
def test_times_are_checked(kernels: Any, ts: Any, message: str) -> None:
    flow = nth.GradientFlow(network(), points())
    expect(message, lambda: nth.integrate(flow, ts))
    hierarchy = nth.DenseHierarchy(kernels, points())
    expect(message, lambda: nth.integrate(hierarchy, ts))
    expect(message, lambda: nth.gradient_flow(network(), points(), ts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1; got 0."),
        ({"max_steps": 1.5}, "max_steps must be an integer of at least 1; got 1.5."),
        ({"max_steps": None}, "max_steps must be an integer of at least 1; got None."),
    ],
)
def test_max_steps_is_checked(options: Any, message: str) -> None:
    expect(message, lambda: nth.gradient_flow(network(), points(), [1.0], **options))


def test_method_is_checked() -> None:
    message = "got 'densee'. Did you mean 'dense'?"
    entry_point = (network(), points(), [1.0])
    expect(message, lambda: nth.solve(*entry_point, order=2, method="densee"))
    expect(message, lambda: nth.compare(*entry_point, method="densee"))


@pytest.mark.parametrize("entry_point", ["solve", "gradient_flow", "compare"])
def test_unknown_options_are_refused(entry_point: str) -> None:
    order = {"order": 2} if entry_point == "solve" else {}
    with pytest.raises(
        TypeError, match=r"(unexpected keyword argument|unknown option) 'max_step'"
    ):
        getattr(nth, entry_point)(network(), points(), [1.0], max_step=3, **order)


@pytest.mark.parametrize("entry_point", ["solve", "gradient_flow"])
def test_a_failed_solve_names_time_and_cause(entry_point: str) -> None:
    """With too few steps; `throw=False` keeps the values at earlier times."""
    order = {"order": 2, "method": "dense"} if entry_point == "solve" else {}
    call = (network(), points(), [0.0, 0.001, 10.0])
    solution = getattr(nth, entry_point)(*call, max_steps=1, throw=False, **order)
    last = float(solution.stats["last_time"])
    assert 0 < last < 10
    assert solution.result != SUCCESSFUL
    assert solution.valid_until == np.inf
    reached = np.asarray(solution.ts) <= last
    assert reached.any()
    assert not reached.all()
    for values in (solution.train, solution.test, solution.loss):
        assert np.isfinite(values[reached]).all()
        assert np.isnan(values[~reached]).all()
    message = f"{solution.label} failed at t = {last:.6g}, before the last time 10: "
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        getattr(nth, entry_point)(*call, max_steps=1, **order)
    assert "it took max_steps=1 steps. Give a larger max_steps" in str(raised.value)
    assert "throw=False" in str(raised.value)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ((), "orders must be a sequence of at least one level; got ()."),
        (3, "orders must be a sequence of at least one level; got 3."),
        ((2, 3, 2), "orders must be distinct; got (2, 3, 2)."),
        ((1, 2), "orders must be at least 2; got 1."),
        ((2.0,), "orders must be an integer of at least 2; got 2.0."),
        ((True, 2), "orders must be an integer of at least 2; got True."),
        ("23", "orders must be an integer of at least 2; got '2'."),
    ],
)
def test_orders_are_checked(orders: Any, message: str) -> None:
    expect(message, lambda: nth.compare(network(), points(), [1.0], orders))


@pytest.mark.parametrize("shape", [(), (2,), (1, 1)])
def test_shape_of_y_test_is_checked(shape: tuple[int, ...]) -> None:
    message = (
        f"y_test must have shape (1,), as x_test and y_train require; got {shape}."
    )
    y_test = np.ones(shape)
    expect(message, lambda: nth.compare(network(), points(), [1.0], y_test=y_test))
