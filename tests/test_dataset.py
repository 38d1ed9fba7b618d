"""Targets and inputs of the command line, from the arrays of a file."""

import re
from typing import Any

import numpy as np
import pytest

from nth._command_line.dataset import Targets, as_inputs, as_targets


def made(train: Any, test: Any = None, loss: str | None = None) -> Targets:
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
    """The higher label is +1, in one output; said in words."""
    targets = made(labels, labels[:2], loss)
    np.testing.assert_array_equal(targets.train, [-1.0, 1.0, 1.0, -1.0])
    np.testing.assert_array_equal(targets.test, [-1.0, 1.0])
    assert targets.train.dtype == np.float64
    assert (targets.out_size, targets.loss) == ("scalar", loss or "squared-error")
    assert "2 classes" in targets.description
    assert "on targets -1 and +1" in targets.description


def test_a_class_that_is_not_among_the_training_points_of_two() -> None:
    """0 is known to be one of two labels 0 and 1."""
    np.testing.assert_array_equal(made([1, 1], [0, 1]).test, [-1, 1])
    targets = made([0, 0], [1, 0], "cross-entropy")
    assert targets.out_size == 2
    np.testing.assert_array_equal(targets.test, [1, 0])


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_more_classes_are_numbered(shape: tuple[int, ...]) -> None:
    """Each label by its place among the labels of y_train, in whatever dtype."""
    labels = np.array([9, 4, 7, 4, 9, 7], np.uint8).reshape(shape)
    targets = made(labels, [7.0, 9.0])
    np.testing.assert_array_equal(targets.train, [2, 0, 1, 0, 2, 1])
    np.testing.assert_array_equal(targets.test, [1, 2])
    assert np.issubdtype(targets.train.dtype, np.integer)
    assert (targets.out_size, targets.loss) == (3, "cross-entropy")
    assert "3 classes, labels 4, 7, 9: softmax cross-entropy" in targets.description


def test_squared_error_of_classes_is_of_one_hot_rows() -> None:
    targets = made([0, 2, 1], [2, 2, 0], "squared-error")
    np.testing.assert_array_equal(targets.train, np.eye(3)[[0, 2, 1]])
    np.testing.assert_array_equal(targets.test, np.eye(3)[[2, 2, 0]])
    assert targets.out_size == 3
    assert "on one-hot targets (to regress the numbers, save" in targets.description


def test_floats_are_numbers() -> None:
    for loss in (None, "squared-error"):
        targets = made([0.0, 1.0, 2.0], [0.5], loss)
        np.testing.assert_array_equal(targets.train, [0.0, 1.0, 2.0])
        np.testing.assert_array_equal(targets.test, [0.5])
        assert "not taken for class labels" in targets.description
        assert (targets.out_size, targets.loss) == ("scalar", "squared-error")
    assert "real targets" in made([0.5, 1.0]).description
    assert made(np.ones((3, 4)) / 4, None, "cross-entropy").out_size == 4
    assert made(np.ones((3, 4), int)).train.dtype == np.float64


def test_whole_floats_are_labels_for_a_loss_of_labels() -> None:
    targets = made([0.0, 1.0, 2.0], [2.0], "cross-entropy")
    np.testing.assert_array_equal(targets.train, [0, 1, 2])
    np.testing.assert_array_equal(targets.test, [2])
    np.testing.assert_array_equal(made([0.0, 1.0], None, "logistic").train, [-1, 1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0, 1, 2], [3]), "y_test has labels that y_train has not, 3: give training"),
        (([0, 1, 2], [0.5]), "y_test has labels that y_train has not, 0.5"),
        (([0, 1, 2], np.eye(3)), "y_test has shape (3, 3), and y_train holds class"),
        (([5, 5, 5],), "y_train has only one class, label 5"),
        (([12, 47, 33, 12],), "y_train holds integers, 3 distinct ones for 4 points"),
        (([0, 1, 2], None, "logistic"), "--loss logistic takes two classes; y_train"),
    ],
)
def test_labels_that_do_not_fit(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        made(*arguments)


def test_the_cures_of_numbers_that_may_be_labels() -> None:
    numbers = [12, 47, 33, 12]
    assert made(numbers, None, "cross-entropy").out_size == 3
    assert made(np.array(numbers, float)).out_size == "scalar"


def test_inputs() -> None:
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
