"""Bad values of every argument of `theory`, `scaling` and `infinite`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from bad_arguments import (
    HUGE,
    KEY,
    LOW,
    NETWORK,
    PROBLEM,
    Call,
    X,
    expect,
    formed,
    refused,
)

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")


def bounds(**options: Any) -> Any:
    return nth.theory.bounds(**{"kernels": formed(), "width": 100, **options})


def activation(function: Any = "tanh", **options: Any) -> Any:
    return nth.theory.check_activation(function, **options)


def laziness(**options: Any) -> Any:
    return nth.theory.laziness(NETWORK, PROBLEM, **options)


@refused(
    ("activation", lambda: activation("thanh")),
    ("activation", lambda: activation(None)),
    ("activation", lambda: activation(lambda x: x[0])),
    ("activation", lambda: activation(lambda x: x.nothing)),
    ("order", lambda: activation(order=30)),
    ("order", lambda: activation("softplus", order=5)),
    ("order", lambda: activation(order=0)),
    ("radius", lambda: activation(radius=np.inf)),
    ("cells", lambda: activation(cells=HUGE)),
    ("x", lambda: nth.theory.check_data(None)),
    ("x", lambda: nth.theory.check_data(X * np.nan)),
    ("x", lambda: nth.theory.check_data(X.astype(LOW[0]))),
    ("order", lambda: nth.theory.check_data(X, order=0)),
    ("samples", lambda: nth.theory.check_data(X, samples=HUGE)),
    ("seed", lambda: nth.theory.check_data(X, seed=-1)),
    ("kernels", lambda: bounds(kernels=None)),
    ("width", lambda: bounds(width=1)),
    ("width", lambda: bounds(width="wide")),
    ("largest_order", lambda: bounds(largest_order=1)),
    ("constant", lambda: bounds(constant=0)),
    ("log_power", lambda: bounds(log_power=-1)),
    ("epsilon", lambda: bounds().time(0.0)),
    ("t", lambda: bounds().error(2, -1.0)),
    ("order", lambda: bounds().error(6, 1.0)),
    ("order", lambda: bounds().kernel_error(2.0, 1.0)),
    ("error", lambda: bounds().width_for(2, 0.0)),
    ("t", lambda: bounds().order_for(0.1, 1e3)),
    ("error", lambda: bounds().order_for(1e-30, 1.0)),
    ("starts", lambda: laziness(starts=HUGE)),
    ("max_steps", lambda: laziness(max_steps=0)),
    ("problem", lambda: nth.theory.laziness(NETWORK, None)),
    ("path", lambda: nth.theory.motion(None, PROBLEM)),
)
def test_theory_names_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


def sweep(measure: Any = lambda w, key: jnp.ones(()), **options: Any) -> Any:
    given = {"widths": [2], "initializations": 2, "key": KEY, **options}
    return nth.scaling.sweep(measure, **given)


def fit(widths: Any = (1, 2, 4), values: Any = (1.0, 2.0, 3.0), **options: Any) -> Any:
    return nth.scaling.fit(widths, values, **options)


@refused(
    ("measure", lambda: sweep(None)),
    ("measure", lambda: sweep(lambda w, key: 1.0)),
    ("measure", lambda: sweep(lambda w, key: None)),
    ("measure", lambda: sweep(lambda w, key: jnp.ones(2))),
    ("measure", lambda: sweep(lambda w: jnp.ones(()))),
    ("widths", lambda: sweep(widths=[])),
    ("widths", lambda: sweep(widths=3)),
    ("widths", lambda: sweep(widths=[2, 2])),
    ("initializations", lambda: sweep(initializations=HUGE)),
    ("batch_size", lambda: sweep(batch_size=0)),
    ("key", lambda: sweep(key=0)),
    ("path", lambda: sweep(path=3)),
    ("progress", lambda: sweep(progress="yes")),
    ("widths", lambda: fit([1, 2, np.inf])),
    ("widths", lambda: fit([1, 2])),
    ("widths", lambda: fit("abc")),
    ("widths", lambda: fit(None)),
    ("values", lambda: fit(values=None)),
    ("values", lambda: fit(values=[1.0, np.nan, 2.0])),
    ("values", lambda: fit(values=[1.0, 0.0, 2.0])),
    ("values", lambda: fit(values=[[1], [1, 2], [3]])),
    ("values", lambda: fit(values=[1j, 1, 1])),
    ("confidence", lambda: fit(confidence=1.0)),
    ("confidence", lambda: fit(confidence="95%")),
    ("statistic", lambda: fit(values=np.ones((3, 4)), statistic=3)),
    ("statistic", lambda: fit(values=np.ones((3, 4)), statistic=lambda v: v)),
    ("statistic", lambda: fit(values=np.ones((3, 4)), statistic=np.cumsum)),
    ("x1", lambda: nth.infinite.kernels(None, depth=1)),
    ("x1", lambda: nth.infinite.kernels(jnp.asarray(X, LOW[1]), depth=1)),
    ("depth", lambda: nth.infinite.kernels(X, depth=-1)),
    ("nodes", lambda: nth.infinite.kernels(X, depth=1, nodes=10)),
    ("kernels", lambda: nth.infinite.ensemble(None, PROBLEM, [1.0])),
)
def test_scaling_and_infinite_name_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)
