"""Predict training by an optimizer at several levels, and train the network."""

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._discrete.optimizer import traced
from .._discrete.plan import plan
from .._discrete.run_options import RunOptions
from .._discrete.solve import levels_of, trained_network
from .._discrete.stability import warn_of_instability
from .._internal.precision import full_precision
from .._internal.validation import require_instance
from .._network.base import trainable
from .._problem.problem import Problem
from .._solution.prediction import AbstractPrediction
from .compare import check_names, check_orders, check_predictions, check_y_test
from .comparison import Comparison


@full_precision
def compare_discrete(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    optimizer: Any,
    orders: Sequence[int] = (2, 3, 4),
    *,
    models: Mapping[str, AbstractPrediction] = MappingProxyType({}),
    y_test: Any = None,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    batches: Any = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    save_fn: Callable[..., PyTree[Array]] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Predict training by an optimizer at several levels, and compare the levels with
    the trained network.

    **Arguments:**

    - `network`, `problem`, `steps`, `optimizer`, `batch_size`, `key`, `batches`,
        `filter_spec`, `learning_rates`, `save_fn`, `progress`, `checkpoint`: as for
        [`nth.solve_discrete`][]. Batches are the same for the network and for every
        level; with `checkpoint="run.npz"` each has a separate file, `run-truth.npz`,
        `run-p2.npz` and so on.
    - `orders`: the levels p, each from 2 to 12.
    - `models`: other predictions at the same steps, by name, such as that of
        [`nth.train_taylorized`][]; compared as the levels are.
    - `y_test`: test targets, in the form of `problem.y_train`; used for the accuracy.

    **Returns:** [`nth.Comparison`][], whose `ts` are the requested steps.

    **Raises:** `ValueError` for bad input.
    """
    levels = check_orders(orders)
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    check_names(models)
    for name, model in models.items():
        example = "nth.train_taylorized(...)"
        require_instance(f"models[{name!r}]", model, AbstractPrediction, example)
    options = RunOptions(save_fn, progress, checkpoint).checked()
    own = trainable(network, problem, filter_spec, learning_rates)
    known = None
    if y_test is not None:
        known = check_y_test(y_test, own.problem, own.apply.output)
    planned = plan(steps, own.problem.n_train, batch_size, key, batches)
    program = traced(optimizer, own.params)
    warn_of_instability(own, planned, optimizer, program)
    solutions = levels_of(
        own, planned, levels, program, lambda p: options.of_model(f"p{p}")
    )
    truth = trained_network(own, planned, program, options.of_model("truth"))
    others = dict(models)
    check_predictions(others, truth)
    return Comparison(truth, solutions, problem, known, others)
