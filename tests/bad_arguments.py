"""Helpers of the tests of bad arguments: calls, and checks of messages."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
Call = Callable[[], Any]
KEY = jax.random.key(0)
X, Y = np.eye(4)[:, :3], np.array([1.0, -1.0, 1.0, 1.0])
PROBLEM = make_problem()
NETWORK = make_network(3, 1)
HUGE = 10**12
LOW = (jnp.float16, jnp.bfloat16)


def formed(order: int = 2) -> Any:
    """Kernels on the points of `PROBLEM`, from arrays of ones."""
    ntk = np.concatenate([np.eye(4), np.ones((2, 4))])
    rest = [np.ones((6,) + (4,) * (r - 1)) for r in range(3, order + 1)]
    return nth.Kernels(tuple(map(jnp.asarray, [np.ones(6), ntk, *rest])))


def refused(*rows: tuple[str, Call]) -> pytest.MarkDecorator:
    """Parametrize a test over calls and the argument that each error must name."""
    named = [pytest.param(*row, id=f"{row[0]}-{i}") for i, row in enumerate(rows)]
    return pytest.mark.parametrize(("argument", "call"), named)


def expect(argument: str, call: Call) -> None:
    with pytest.raises(ValueError, match=rf"(?<!\w){re.escape(argument)}\b"):
        call()
