"""Solve several levels and train the network, for comparison."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree
from typing_extensions import Unpack

from .._custom_types import Params
from .._dynamics.base import AbstractDynamics
from .._dynamics.gradient_flow import GradientFlow
from .._dynamics.parameter_dynamics import AbstractDescent
from .._dynamics.taylorized import TaylorizedFlow
from .._integrate.integrate import (
    IntegrateOptions,
    check_options,
    integrate,
)
from .._internal.checkpoint import file_of_model
from .._internal.precision import full_precision
from .._internal.validation import (
    as_array,
    is_traced,
    require_finite,
    require_instance,
    require_name,
    require_order,
    require_times,
)
from .._network.base import trainable
from .._problem.problem import Problem
from .._solution.prediction import AbstractPrediction
from .._solution.solution import Solution
from .._solve import METHODS, Method, hierarchies
from .comparison import Comparison

Model = AbstractDynamics | AbstractPrediction


@full_precision
def compare(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    orders: Sequence[int] = (2, 3, 4),
    *,
    models: Mapping[str, Model] = MappingProxyType({}),
    y_test: Any = None,
    method: Method = "auto",
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    weight_decay: Any = 0.0,
    **options: Unpack[IntegrateOptions],
) -> Comparison:
    """Solve several levels of the hierarchy and compare them with the trained network.

    **Arguments:**

    - `network`, `problem`, `ts`, `method`, `filter_spec`, `learning_rates`,
        `weight_decay`, `options`: as for [`nth.solve`][]; with
        `checkpoint="run.npz"` each model has a separate file: `run-truth.npz`,
        `run-p2.npz` and so on.
    - `orders`: the levels p, each from 2 to 12. Kernels are formed once for all levels
        that are solved in their dense form.
    - `models`: other models of training by name, compared as the levels are: each a
        dynamics of the same problem and loss, with the same trained parameters,
        learning rates and weight decay, such as [`nth.TaylorizedFlow`][]; or a
        prediction at the same times, such as that of [`nth.closed_form`][] or
        [`nth.perturbative`][].
    - `y_test`: test targets, in the form of `problem.y_train`; used for the accuracy.

    **Returns:** [`nth.Comparison`][].

    **Raises:** `ValueError` for bad input, `RuntimeError` for a failed solve.
    """
    levels = check_orders(orders)
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    require_name("method", method, METHODS)
    check_names(models)
    check_options(options)
    own = trainable(network, problem, filter_spec, learning_rates)
    flow = GradientFlow(own, own.problem, weight_decay=weight_decay)
    known = None
    if y_test is not None:
        known = check_y_test(y_test, own.problem, own.apply.output)
    _check_models(models, flow)
    require_times(ts, own.dtype)
    hierarchy = hierarchies(own, ts, levels, method, weight_decay)
    truth = integrate(flow, ts, **_own_file(options, "truth"))
    solutions = {
        p: integrate(hierarchy[p], ts, **_own_file(options, f"p{p}")) for p in levels
    }
    others = {
        name: model
        if isinstance(model, AbstractPrediction)
        else integrate(model, ts, **_own_file(options, re.sub(r"\W+", "-", name)))
        for name, model in models.items()
    }
    check_predictions(others, truth)
    return Comparison(truth, solutions, problem, known, others)


def _own_file(options: IntegrateOptions, model: str) -> IntegrateOptions:
    """`options` with the checkpoint of one model."""
    return {**options, "checkpoint": file_of_model(options.get("checkpoint"), model)}


def check_orders(orders: Sequence[int]) -> list[int]:
    try:
        levels = [require_order("orders", p) for p in orders]
    except TypeError:
        levels = []
    if not levels:
        raise ValueError(
            f"orders must be a sequence of at least one level; got {orders!r}."
        )
    if len(set(levels)) < len(levels):
        raise ValueError(f"orders must be distinct; got {tuple(levels)}.")
    return levels


# Names of the trained network and of the levels in tables, data sets and files.
_TAKEN = re.compile(r"truth|p\W*\d+")


def check_names(models: Mapping[str, Model]) -> None:
    example = 'models={"linear": nth.TaylorizedFlow(network, problem, degree=1)}'
    if not isinstance(models, Mapping):
        raise ValueError(
            f"models must be a mapping of names to dynamics, such as {example}; got "
            f"{models!r}."
        )
    for name, dynamics in models.items():
        if not isinstance(name, str) or not name or _TAKEN.fullmatch(name):
            raise ValueError(
                'models must have strings as names, other than "truth" and names '
                f'of levels such as "p=2"; got {name!r}.'
            )
        if not isinstance(dynamics, AbstractPrediction):
            example = "nth.TaylorizedFlow(network, problem, degree=2)"
            require_instance(f"models[{name!r}]", dynamics, AbstractDynamics, example)


def check_predictions(
    models: Mapping[str, AbstractPrediction], truth: Solution
) -> None:
    """Raise if a model predicts other outputs, or at other times, than `truth` has."""
    for name, model in models.items():
        for part in ("ts", "train", "test"):
            of_model, of_truth = getattr(model, part), getattr(truth, part)
            if of_model.shape != of_truth.shape:
                raise ValueError(
                    f"models[{name!r}].{part} has shape {of_model.shape}, and that of "
                    f"the trained network {of_truth.shape}: predict at the same times, "
                    "on the points of problem."
                )
        same = np.allclose if not is_traced(model.ts, truth.ts) else None
        if same and not same(model.ts, truth.ts, rtol=1e-5, equal_nan=True):
            raise ValueError(
                f"models[{name!r}] has the times {model.ts}, and compare {truth.ts}: "
                "give both the same."
            )


def _check_models(models: Mapping[str, Model], flow: GradientFlow) -> None:
    """Raise `ValueError` if a model is trained differently from `flow`."""
    dynamics_of = {
        name: model
        for name, model in models.items()
        if isinstance(model, AbstractDynamics)
    }
    if not dynamics_of:
        return
    start = flow.outputs(flow.initial_state())
    for name, dynamics in dynamics_of.items():
        for points in ("x_train", "y_train", "x_test"):
            of_truth = getattr(flow.problem, points)
            of_model = getattr(dynamics.problem, points)
            if not eqx.tree_equal(of_truth, of_model):
                raise ValueError(
                    f"models[{name!r}] and problem have different {points}: make the "
                    "model with the same problem."
                )
        if not eqx.tree_equal(dynamics.problem.loss, flow.problem.loss):
            raise ValueError(
                f"models[{name!r}] has the loss {dynamics.problem.loss!r}, and problem "
                f"has {flow.problem.loss!r}: make the model with the same problem."
            )
        if isinstance(dynamics, AbstractDescent | TaylorizedFlow):
            _check_training(name, dynamics, flow)
        outputs = (dynamics.outputs(dynamics.initial_state()), start)
        if not is_traced(outputs) and not np.allclose(*outputs, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"models[{name!r}] and network have different outputs at t = 0: make "
                "the model with the same network."
            )


def _check_training(
    name: str, dynamics: AbstractDescent | TaylorizedFlow, flow: GradientFlow
) -> None:
    """Raise `ValueError` if trained parameters, rates or weight decay differ."""
    with_frozen = [
        jax.tree.structure(params, is_leaf=lambda leaf: leaf is None)
        for params in (dynamics.params, flow.params)
    ]
    trained = [jax.tree.structure(d.params) for d in (dynamics, flow)]
    if with_frozen[0] == with_frozen[1] and trained[0] != trained[1]:
        raise ValueError(
            f"models[{name!r}] and compare train different parameters: give both the "
            "same filter_spec."
        )
    descends = isinstance(dynamics, AbstractDescent)
    decay = dynamics.weight_decay if descends else None
    same = {
        "learning_rates": _same_rates(dynamics.rates, flow.rates, flow.params),
        "weight_decay": _same_decay(decay, flow.weight_decay),
    }
    for option in [option for option, equal in same.items() if not equal]:
        cure = (
            f"give both the same {option}."
            if descends
            else f"a {type(dynamics).__name__} has none, so leave out {option}, or the "
            "model."
        )
        raise ValueError(
            f"models[{name!r}] and compare have different {option}: {cure}"
        )


def _same_decay(one: Any, other: Any) -> bool:
    first, second = (0.0 if decay is None else float(decay) for decay in (one, other))
    return first == second


def _same_rates(one: Params | None, other: Params | None, params: Params) -> bool:
    """Whether two sets of rates are equal; `None` stands for rates of 1."""
    sets = [
        jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), params)
        if rates is None
        else rates
        for rates in (one, other)
    ]
    first, second = map(jax.tree.leaves, sets)
    try:
        return len(first) == len(second) and all(
            bool(np.all(np.asarray(a) == np.asarray(b)))
            for a, b in zip(first, second, strict=True)
        )
    except ValueError:  # shapes that do not broadcast
        return False


def check_y_test(y_test: Any, problem: Problem, output: jax.ShapeDtypeStruct) -> Array:
    """`y_test` in the form of the training targets, checked as those are; `output` has
    the shape and dtype of one output."""
    targets = require_finite("y_test", as_array("y_test", y_test))
    expected = (problem.n_test, *problem.y_train.shape[1:])
    if targets.shape != expected:
        raise ValueError(
            f"y_test must have shape {expected}, as x_test and y_train require; got "
            f"{targets.shape}."
        )
    targets = targets.astype(problem.y_train.dtype)
    if is_traced(targets):
        return targets
    try:
        checked = problem.loss.check_targets(targets, targets.dtype)
        return problem.loss.check_outputs(checked, output)
    except ValueError as error:
        raise ValueError(str(error).replace("y_train", "y_test")) from None
