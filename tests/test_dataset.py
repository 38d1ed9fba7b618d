"""Targets and inputs of the command line, from the arrays of a file."""

import re
from typing import Any

import numpy as np
import pytest

from nth._command_line.dataset import Targets, as_inputs, as_targets


def targets_of(train: Any, test: Any = None, loss: str | None = None) -> Targets:
    arrays = {"y_train": np.asarray(train)}
    if test is not None:
        arrays["y_test"] = np.asarray(test)
        arrays["x_test"] = np.zeros((len(test), 3))
    return as_targets(arrays, loss, "float64")


@pytest.mark.parametrize("loss", [None, "squared-error", "logistic"])
@pytest.mark.parametrize(
    "labels", [[-1, 1, 1, -1], [0, 1, 1, 0], [False, True, True, False], [3, 8, 8, 3]]
)
def test_two_classes_are_signs(labels: list[int], loss: str | None) -> None:
    """The higher label is +1, with one output, as the description states."""
    targets = targets_of(labels, labels[:2], loss)
    np.testing.assert_array_equal(targets.train, [-1.0, 1.0, 1.0, -1.0])
    np.testing.assert_array_equal(targets.test, [-1.0, 1.0])
    assert targets.train.dtype == np.float64
    assert (targets.out_size, targets.loss) == ("scalar", loss or "squared-error")
    assert "2 classes" in targets.description
    assert "on targets -1 and +1" in targets.description


def test_one_of_two_classes_may_be_absent_from_the_training_points() -> None:
    """A single label 0 or 1 is taken as one of the two labels 0 and 1."""
    np.testing.assert_array_equal(targets_of([1, 1], [0, 1]).test, [-1, 1])
    targets = targets_of([0, 0], [1, 0], "cross-entropy")
    assert targets.out_size == 2
    np.testing.assert_array_equal(targets.test, [1, 0])


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_more_classes_are_numbered(shape: tuple[int, ...]) -> None:
    """Each label becomes its index among the labels of y_train, in any dtype."""
    labels = np.array([9, 4, 7, 4, 9, 7], np.uint8).reshape(shape)
    targets = targets_of(labels, [7.0, 9.0])
    np.testing.assert_array_equal(targets.train, [2, 0, 1, 0, 2, 1])
    np.testing.assert_array_equal(targets.test, [1, 2])
    assert np.issubdtype(targets.train.dtype, np.integer)
    assert (targets.out_size, targets.loss) == (3, "cross-entropy")
    assert "3 classes, labels 4, 7, 9: softmax cross-entropy" in targets.description


def test_squared_error_of_classes_uses_one_hot_targets() -> None:
    targets = targets_of([0, 2, 1], [2, 2, 0], "squared-error")
    np.testing.assert_array_equal(targets.train, np.eye(3)[[0, 2, 1]])
    np.testing.assert_array_equal(targets.test, np.eye(3)[[2, 2, 0]])
    assert targets.out_size == 3
    assert "on one-hot targets (to regress the numbers, save" in targets.description


def test_floats_are_real_targets() -> None:
    for loss in (None, "squared-error"):
        targets = targets_of([0.0, 1.0, 2.0], [0.5], loss)
        np.testing.assert_array_equal(targets.train, [0.0, 1.0, 2.0])
        np.testing.assert_array_equal(targets.test, [0.5])
        assert "not taken for class labels" in targets.description
        assert (targets.out_size, targets.loss) == ("scalar", "squared-error")
    assert "real targets" in targets_of([0.5, 1.0]).description
    assert targets_of(np.ones((3, 4)) / 4, None, "cross-entropy").out_size == 4
    assert targets_of(np.ones((3, 4), int)).train.dtype == np.float64


def test_integral_floats_are_labels_for_a_classification_loss() -> None:
    targets = targets_of([0.0, 1.0, 2.0], [2.0], "cross-entropy")
    np.testing.assert_array_equal(targets.train, [0, 1, 2])
    np.testing.assert_array_equal(targets.test, [2])
    np.testing.assert_array_equal(
        targets_of([0.0, 1.0], None, "logistic").train, [-1, 1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1, 2], [3]), "y_test has labels that y_train has not, 3: give training"),
        (([0, 1, 2], [0.5]), "y_test has labels that y_train has not, 0.5"),
        (([0, 1, 2], np.eye(3)), "y_test has shape (3, 3), and y_train holds class"),
        (([5, 5, 5],), "y_train has only one class, label 5"),
        (([12, 47, 33, 12],), "y_train holds integers, 3 distinct ones for 4 points"),
        (([0, 1, 2], None, "logistic"), "--loss logistic takes two classes; y_train"),
    ],
)
def test_labels_that_do_not_match_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        targets_of(*arguments)


def test_the_cures_for_ambiguous_integers_work() -> None:
    numbers = [12, 47, 33, 12]
    assert targets_of(numbers, None, "cross-entropy").out_size == 3
    assert targets_of(np.array(numbers, float)).out_size == "scalar"


def test_inputs_are_normalized_or_warned_about() -> None:
    x = np.array([[3.0, 4.0], [0.3, 0.4]])
    with pytest.warns(UserWarning, match="largest norm of an input is 5, .* above"):
        as_inputs({"x_train": x}, "float64", False)
    with pytest.warns(
        UserWarning, match=r"largest norm of an input is 0\.05, .* below"
    ):
        as_inputs({"x_train": x / 100}, "float64", False)
    x_train, x_test = as_inputs({"x_train": x, "x_test": 9 * x}, "float32", True)
    for scaled in (x_train, x_test):
        assert scaled is not None
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, [[0.6, 0.8]] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"x_test\[1\] has norm 0"):
        as_inputs({"x_train": x, "x_test": x * [[1], [0]]}, "float64", True)
