"""The data of the command line: handwritten digits, or the arrays of an npz file.

Integers in `y_train` are class labels and floats are numbers; each decision is
reported in one line. Nothing here imports JAX.
"""

import math
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
LOSSES = ("squared-error", "cross-entropy", "logistic")

# Norms of inputs. For handwritten digits and tanh at width 256, level 4 has 20 times
# less error than level 2 at norm 1, as much error at norm 3, and diverges at norm 10;
# at norm 0.1 and below the loss has hardly moved when it is nearly zero at norm 1.
_LARGEST_NORM = 3.0
_SMALLEST_NORM = 0.1


class Targets(NamedTuple):
    """Targets in the form of the loss, and a description in one line."""

    train: np.ndarray
    test: np.ndarray | None
    loss: str
    out_size: int | Literal["scalar"]
    description: str


def digits(n_train: int, n_test: int, seed: int) -> dict[str, np.ndarray]:
    """Scikit-learn's handwritten digits, of unit norm: odd is +1 and even is −1."""
    from sklearn.datasets import load_digits

    images, numbers = load_digits(return_X_y=True)
    if n_train + n_test > len(images):
        raise ValueError(
            f"--train and --test ask for {n_train + n_test} digits of {len(images)}."
        )
    chosen = np.random.default_rng(seed).permutation(len(images))[: n_train + n_test]
    x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
    y = np.where(numbers[chosen] % 2, 1.0, -1.0)
    train, test = slice(n_train), slice(n_train, None)
    arrays = (x[train], y[train], x[test], y[test])
    return dict(zip(ARRAYS, arrays, strict=True))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file: `x_train`, `y_train`, maybe `x_test`, `y_test`."""
    if not path.is_file():  # a pipe or a device may have no end
        raise ValueError(f"cannot read {path} as npz: it is not a regular file.")
    try:
        with zipfile.ZipFile(path):  # an npz file is a zip file of arrays
            file = np.load(path, allow_pickle=False)
        arrays = {name: file[name] for name in ARRAYS if name in file}
    except (
        *(OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error),
        *(RuntimeError, MemoryError),  # encrypted, or a header that says too much
    ) as error:
        raise ValueError(
            f"cannot read {path} as npz, which np.savez writes: {error}"
        ) from None
    missing = [name for name in ARRAYS[:2] if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {' and no '.join(missing)}")
    if "y_test" in arrays and "x_test" not in arrays:
        raise ValueError(f"{path} has y_test and no x_test: give both, or leave both.")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold real numbers; got {array.dtype}.")
    return arrays


def as_inputs(
    arrays: dict[str, np.ndarray], dtype: str, normalize: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """`x_train` and `x_test`, with inputs as vectors of `dtype`, normalized on request.

    Warns if norms are far from 1.
    """
    inputs = {k: _as_vectors(k, v) for k, v in arrays.items() if k.startswith("x")}
    if normalize:
        inputs = {name: _normalized(name, x) for name, x in inputs.items()}
    with np.errstate(over="ignore"):  # `nth.Problem` refuses inputs that overflow
        inputs = {name: x.astype(dtype) for name, x in inputs.items()}
    largest = max(float(_norms(x).max(initial=0)) for x in inputs.values())
    if math.isfinite(largest) and not _SMALLEST_NORM <= largest <= _LARGEST_NORM:
        _warn_of_norm(largest)
    return inputs["x_train"], inputs.get("x_test")


def _as_vectors(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape (points, *in); got {array.shape}.")
    size = math.prod(array.shape[1:])
    if size == 0:
        raise ValueError(f"{name} has inputs with no number: shape {array.shape}.")
    wide = np.longdouble if array.dtype == np.longdouble else np.float64
    return array.reshape(len(array), size).astype(wide)


def _norms(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.linalg.norm(x.astype(np.float64), axis=1)


def _normalized(name: str, x: np.ndarray) -> np.ndarray:
    norms = _norms(x)
    if np.any(norms == 0):
        row = int(np.argmin(norms))
        raise ValueError(
            f"--normalize: {name}[{row}] has norm 0 and no direction: leave it out."
        )
    with np.errstate(invalid="ignore"):  # `nth.Problem` refuses NaN and infinity
        return x / norms[:, None]


def _warn_of_norm(largest: float) -> None:
    if largest > _LARGEST_NORM:
        effect = f"above about {_LARGEST_NORM:g} no level predicts its training well"
    else:
        effect = f"below about {_SMALLEST_NORM:g} it hardly trains"
    warnings.warn(
        f"the largest norm of an input is {largest:.3g}, and the network is meant for "
        f"norms near 1: {effect}. Rescale the inputs, or give --normalize.",
        stacklevel=3,
    )


def as_targets(arrays: dict[str, np.ndarray], loss: str | None, dtype: str) -> Targets:
    """`y_train` and `y_test` as `loss`, or the loss that suits them, takes them."""
    train = arrays["y_train"]
    labels = _are_labels(train, loss)
    make = _of_labels if labels else _of_numbers
    targets = make(_flat(train) if labels else train, arrays.get("y_test"), loss, dtype)
    if targets.test is not None:
        expected = (len(arrays["x_test"]), *targets.train.shape[1:])
        if targets.test.shape != expected:
            raise ValueError(
                f"y_test has shape {arrays['y_test'].shape}; x_test and y_train ask "
                f"for one target for each of {expected[0]} test points, like y_train."
            )
        if not np.all(np.isfinite(targets.test)):
            raise ValueError("y_test has NaN or infinite entries: leave those out.")
    return targets


def _of_numbers(
    train: np.ndarray, test: np.ndarray | None, loss: str | None, dtype: str
) -> Targets:
    out_size = train.shape[1] if train.ndim == 2 else "scalar"
    out = "one output" if out_size == "scalar" else f"{out_size} outputs"
    loss = loss or "squared-error"
    with np.errstate(over="ignore"):  # `nth.Problem` refuses targets that overflow
        numbers = train.astype(dtype), None if test is None else test.astype(dtype)
    description = f"{_NAMES[loss]} of {out} on {_kind(train)}"
    return Targets(*numbers, loss, out_size, description)


def _kind(targets: np.ndarray) -> str:
    if np.all(np.abs(targets) == 1):
        return "targets -1 and +1"
    if targets.ndim == 2 and np.all((targets == 0) | (targets == 1)):
        return "targets 0 and 1"
    if targets.ndim == 1 and _are_whole(targets):
        return (
            "whole numbers, given as floats and so not taken for class labels (if they "
            "are labels, save y_train as integers)"
        )
    return "real targets"


_NAMES = {
    "squared-error": "squared error",
    "cross-entropy": "softmax cross-entropy",
    "logistic": "logistic loss",
}


def _flat(y: np.ndarray) -> np.ndarray:
    """Labels `(n, 1)` as `(n,)`."""
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _are_whole(y: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(y)) and np.all(y == np.round(y)))


def _are_labels(y: np.ndarray, loss: str | None) -> bool:
    """Whether `y` holds class labels: integers, or whole floats if `loss` is one that
    takes labels alone."""
    if _flat(y).ndim != 1 or y.size == 0:
        return False
    return y.dtype.kind in "biu" or (
        loss in ("cross-entropy", "logistic") and _are_whole(y)
    )


def _of_labels(
    train: np.ndarray, test: np.ndarray | None, loss: str | None, dtype: str
) -> Targets:
    """Targets from class labels, with a description in one line."""
    train = train.astype(np.int64) if train.dtype.kind in "bf" else train
    classes = _classes(train, test, loss)
    count = len(classes)
    kinds = f"{count} classes, labels {_listed(classes)}"
    loss = loss or ("squared-error" if count == 2 else "cross-entropy")
    if loss == "logistic" and count > 2:
        raise ValueError(
            f"--loss logistic takes two classes; y_train has {kinds}. Give --loss "
            "cross-entropy or squared-error."
        )
    numbers = [_numbered("y_train", train, classes)]
    if test is not None:
        numbers.append(_numbered("y_test", _flat(test), classes))
    out_size = count
    if loss == "cross-entropy":
        outputs = f"{count} outputs"
    elif count == 2:
        outputs, out_size = "one output on targets -1 and +1", "scalar"
        numbers = [(2.0 * number - 1).astype(dtype) for number in numbers]
    else:
        outputs = (
            f"{count} outputs on one-hot targets (to regress the numbers, save y_train "
            "as floats)"
        )
        numbers = [np.eye(count, dtype=dtype)[number] for number in numbers]
    known = numbers[1] if test is not None else None
    description = f"{kinds}: {_NAMES[loss]} of {outputs}"
    return Targets(numbers[0], known, loss, out_size, description)


def _classes(
    labels: np.ndarray, test: np.ndarray | None, loss: str | None
) -> np.ndarray:
    """The distinct training labels, in increasing order.

    -1, +1 and 0, 1 are two classes even if one of them has no training point.
    """
    every = labels if test is None else np.concatenate([labels, test.ravel()])
    for pair in ([-1, 1], [0, 1]):
        if np.all(np.isin(every, pair)):
            return np.array(pair)
    classes = np.unique(labels)
    count = len(classes)
    if count == 1:
        raise ValueError(f"y_train has only one class, label {classes[0]}.")
    consecutive = np.array_equal(classes, np.arange(count))
    if loss is None and not consecutive and 2 * count > len(labels):
        raise ValueError(
            f"y_train holds integers, {count} distinct ones for {len(labels)} points: "
            "if they are class labels, give --loss cross-entropy; if they are numbers, "
            "save them as floats."
        )
    return classes


def _numbered(name: str, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The index of each label in `classes`."""
    if labels.ndim != 1:
        raise ValueError(
            f"{name} has shape {labels.shape}, and y_train holds class labels: give "
            "one label for each point."
        )
    unseen = np.setdiff1d(labels, classes)
    if len(unseen):
        raise ValueError(
            f"{name} has labels that y_train has not, {_listed(unseen)}: give training "
            "points of those classes, or leave out those test points."
        )
    return np.searchsorted(classes, labels).astype(np.int32)


def _listed(labels: np.ndarray) -> str:
    """A few labels: `0 to 9`, or `3, 5, 8`."""
    if len(labels) > 2 and np.array_equal(labels, labels[0] + np.arange(len(labels))):
        return f"{labels[0]} to {labels[-1]}"
    shown = [str(label) for label in labels[:8]]
    return ", ".join(shown + ["..."] * (len(labels) > 8))
