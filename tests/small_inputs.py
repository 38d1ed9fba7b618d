"""Four points, networks and kernels on them, for tests of messages."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import make_network

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
Call = Callable[[], Any]

X = np.random.default_rng(0).normal(size=(4, 2))
Y = np.array([1.0, -1.0, 1.0])
CROSS_ENTROPY = typed_nth.SoftmaxCrossEntropy()


def expect(message: str, call: Call) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def points(y: Any = Y, loss: Any = None, x: Any = X[:3]) -> Any:
    return nth.Problem(x, y, X[3:], loss=nth.SquaredError() if loss is None else loss)


def network(outputs: int | None = None, **options: Any) -> Any:
    return make_network(4, 1, 2, outputs=outputs, **options)


def formed(net: Any, order: Any = 2, **options: Any) -> Any:
    return nth.kernels(net, points(), order=order, **options)
