"""Levels beside the truth: errors over time, as a table, a figure, a data set."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree
from typing_extensions import Unpack

from ._discrete import gradient_descent, levels_by_steps
from ._dynamics import AbstractDynamics
from ._errors import (
    as_array,
    require_finite,
    require_instance,
    require_integer,
    require_name,
    require_times,
)
from ._integrate import (
    IntegrateOptions,
    check_options,
    integrate,
)
from ._loss import SoftmaxCrossEntropy
from ._problem import Problem
from ._rule import GradientDescent
from ._solution import Solution
from ._solve import Method, gradient_flow, hierarchies
from ._table import name_of, table

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Points = Literal["train", "test"]


class Comparison(eqx.Module):
    """Solutions of several levels beside the network really trained.

    `print` it for a table; see also `plot` and `to_xarray`.
    """

    truth: Solution
    """The network really trained."""

    solutions: dict[int, Solution]
    """The truncated hierarchy, by level p."""

    problem: Problem
    """Points, targets and loss."""

    y_test: Array | None
    """Test targets, used for test accuracy alone."""

    models: dict[str, Solution] = eqx.field(default_factory=dict)
    """Other models of training, by name."""

    @property
    def ts(self) -> Float[Array, " T"] | Int[Array, " T"]:
        """The requested times, or steps."""
        return self.truth.ts

    @property
    def clock(self) -> Literal["time", "step"]:
        """What `ts` counts: time, or the steps of a rule."""
        discrete = jnp.issubdtype(self.ts.dtype, jnp.integer)
        return "step" if discrete else "time"

    @property
    def every(self) -> dict[int | str, Solution]:
        """`solutions`, and then `models`."""
        return {**self.solutions, **self.models}

    def error(self, order: int | str, points: Points = "test") -> Float[Array, " T"]:
        """Root-mean-square error of level `order`, or of the model of that name,
        against the truth at each time, over `points` and outputs; NaN for no value.
        """
        require_name("points", points, ("train", "test"))
        truth = getattr(self.truth, points)
        difference = getattr(self._solution(order), points) - truth
        if truth.shape[1] == 0:
            raise ValueError("points: there is no test point; give problem an x_test.")
        return jnp.sqrt(jnp.mean(difference**2, axis=range(1, difference.ndim)))

    def accuracy(
        self, order: int | str, points: Points = "test"
    ) -> Float[Array, " T"] | None:
        """The share of `points` whose label is predicted, at each time, by level
        `order`, by the model of that name, or by the network, `"truth"`.

        Labels are the sign of scalar targets ±1, or the class of integer labels,
        one-hot rows or probabilities. `None` if the targets are not labels, or
        are not known.
        """
        require_name("points", points, ("train", "test"))
        solution = self.truth if order == "truth" else self._solution(order)
        targets = self.problem.y_train if points == "train" else self.y_test
        if targets is None:
            return None
        outputs = getattr(solution, points)
        right = _is_right(outputs, targets, self.problem)
        if right is None:
            return None
        return jnp.where(jnp.isfinite(solution.loss), jnp.mean(right, axis=1), jnp.nan)

    def _solution(self, order: int | str) -> Solution:
        if order not in self.every:
            raise ValueError(
                f"order must be one of {list(self.every)}, the levels compared; "
                f"got {order!r}."
            )
        return self.every[order]

    def __str__(self) -> str:
        return table(self)

    def plot(self) -> "Figure":
        """A figure: loss, errors and, for labels, accuracy over time.

        Needs matplotlib: `pip install 'nth[examples]'`.
        """
        from ._plot import plot_comparison

        return plot_comparison(self)

    def to_xarray(self) -> "xarray.Dataset":
        """A labelled data set, with dimensions `model`, `time`, `point` and `output`.

        `model` is `"truth"`, `"p=2"` and so on, or another model's name. Needs
        xarray: `pip install 'nth[examples]'`.
        """
        import xarray

        models = {
            "truth": self.truth,
            **{name_of(p, "="): solution for p, solution in self.every.items()},
        }
        every = list(models.values())
        out = [f"output_{k}" for k in range(self.truth.train.ndim - 2)]
        data: dict[str, Any] = {
            "train": (("model", "time", "train_point", *out), _stack(every, "train")),
            "test": (("model", "time", "test_point", *out), _stack(every, "test")),
            "loss": (("model", "time"), _stack(every, "loss")),
            "valid_until": ("model", _stack(every, "valid_until")),
        }
        for points in ("train", "test"):
            scores = [self.accuracy("truth", points)]
            scores += [self.accuracy(p, points) for p in self.every]
            known = [score for score in scores if score is not None]
            if known:
                data[f"{points}_accuracy"] = (("model", "time"), np.stack(known))
        coordinates = {"model": list(models), "time": np.asarray(self.ts)}
        return xarray.Dataset(data, coordinates)


def compare(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    orders: Sequence[int] = (2, 3, 4),
    *,
    models: Mapping[str, AbstractDynamics] = MappingProxyType({}),
    y_test: Any = None,
    method: Method = "auto",
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    weight_decay: Any = 0.0,
    rule: GradientDescent | None = None,
    **options: Unpack[IntegrateOptions],
) -> Comparison:
    """Solve several levels of the hierarchy and train the network, side by side.

    **Arguments:**

    - `network`, `problem`, `ts`, `method`, `filter_spec`, `learning_rates`,
        `weight_decay`, `options`: as for [`nth.solve`][]; from
        `checkpoint="run.npz"` each model has a file of its own, `run-truth.npz`,
        `run-p2.npz` and so on.
    - `orders`: the levels p, each at least 2. Kernels are formed once for all levels
        that are solved in their dense form.
    - `models`: other models of training by name, each a dynamics of the same
        problem, such as [`nth.TaylorizedFlow`][]; compared as the levels are.
    - `y_test`: test targets, in the form of `problem.y_train`; for accuracy alone.
    - `rule`: an [`nth.GradientDescent`][] for discrete training; `ts` is then `steps`
        of [`nth.solve_discrete`][], the weight decay the rule's, and options of the
        flow are refused.

    **Returns:** [`nth.Comparison`][].

    **Raises:** `ValueError` for bad input, `RuntimeError` for a failed solve.
    """
    levels = _check_orders(orders)
    _check_models(models, problem)
    known = None if y_test is None else _check_y_test(y_test, problem)
    how = (filter_spec, learning_rates)
    if rule is not None:
        _refuse_with_rule(method, weight_decay, models, options)
        solutions = levels_by_steps(network, problem, ts, levels, rule, *how)
        truth = gradient_descent(
            network,
            problem,
            ts,
            rule,
            filter_spec=filter_spec,
            learning_rates=learning_rates,
        )
        return Comparison(truth, solutions, problem, known)
    check_options(options)
    require_times(ts, problem.x_train.dtype)
    hierarchy = hierarchies(network, problem, levels, method, *how, weight_decay)
    truth = gradient_flow(
        network,
        problem,
        ts,
        filter_spec=filter_spec,
        learning_rates=learning_rates,
        weight_decay=weight_decay,
        **_own_file(options, "truth"),
    )
    solutions = {
        p: integrate(hierarchy[p], ts, **_own_file(options, f"p{p}")) for p in levels
    }
    others = {
        name: integrate(dynamics, ts, **_own_file(options, re.sub(r"\W+", "-", name)))
        for name, dynamics in models.items()
    }
    return Comparison(truth, solutions, problem, known, others)


def _refuse_with_rule(
    method: Method,
    weight_decay: Any,
    models: Mapping[str, AbstractDynamics],
    options: IntegrateOptions,
) -> None:
    """Nothing, if no option of the flow is given beside a rule."""
    if models:
        raise ValueError(
            f"models: {next(iter(models))!r} is a model of the flow, and a rule trains "
            "in steps: leave out models, or the rule."
        )
    if method not in ("auto", "matrix-free"):
        raise ValueError(
            f"rule: discrete training has no method {method!r}; leave out method, "
            'or give "matrix-free".'
        )
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        raise ValueError(
            "weight_decay: give it to the rule, nth.GradientDescent(..., "
            f"weight_decay={weight_decay})."
        )
    if options:
        raise ValueError(
            f"{sorted(options)[0]} is an option of the flow: with a rule there is "
            "nothing to integrate. Leave it out."
        )


def _own_file(options: IntegrateOptions, model: str) -> IntegrateOptions:
    """`options` with a checkpoint of this model's own: run.npz, run-p2.npz."""
    path = options.get("checkpoint")
    if path is None:
        return options
    path = Path(path)
    return {**options, "checkpoint": path.with_stem(f"{path.stem}-{model}")}


def _check_orders(orders: Sequence[int]) -> list[int]:
    try:
        levels = [require_integer("orders", p, 2) for p in orders]
    except TypeError:
        levels = []
    if not levels:
        raise ValueError(
            f"orders must be a sequence of at least one level; got {orders!r}."
        )
    if len(set(levels)) < len(levels):
        raise ValueError(f"orders must be distinct; got {tuple(levels)}.")
    return levels


def _check_models(models: Mapping[str, AbstractDynamics], problem: Problem) -> None:
    for name, dynamics in models.items():
        example = "nth.TaylorizedFlow(network, problem, 2)"
        require_instance(f"models[{name!r}]", dynamics, AbstractDynamics, example)
        if not isinstance(name, str) or name == "truth":
            raise ValueError(
                f'models must be named by strings other than "truth"; got {name!r}.'
            )
        for points in ("x_train", "y_train", "x_test"):
            mine, its = getattr(problem, points), getattr(dynamics.problem, points)
            if not np.array_equal(mine, its):
                raise ValueError(
                    f"models[{name!r}] has another {points} than problem: make it of "
                    "the same problem."
                )


def _check_y_test(y_test: Any, problem: Problem) -> Array:
    targets = require_finite("y_test", as_array("y_test", y_test))
    expected = (problem.n_test, *problem.y_train.shape[1:])
    if targets.shape != expected:
        raise ValueError(
            f"y_test has shape {targets.shape}; x_test and y_train ask for {expected}."
        )
    return targets.astype(problem.y_train.dtype)


def _is_right(
    outputs: Float[Array, "T points *out"], targets: Array, problem: Problem
) -> Bool[Array, "T points"] | None:
    """Whether each label is predicted; `None` if the targets are not labels."""
    if jnp.issubdtype(targets.dtype, jnp.integer) and outputs.ndim == 3:
        return jnp.argmax(outputs, axis=2) == targets[None]
    if targets.shape != outputs.shape[1:]:
        return None
    if targets.ndim == 1 and bool(jnp.all(jnp.abs(targets) == 1)):
        return jnp.sign(outputs) == targets[None]
    one_hot = (targets == 0) | (targets == 1)
    classes = isinstance(problem.loss, SoftmaxCrossEntropy) or bool(jnp.all(one_hot))
    if targets.ndim == 2 and targets.shape[1] > 1 and classes:
        return jnp.argmax(outputs, axis=2) == jnp.argmax(targets, axis=1)[None]
    return None


def _stack(solutions: Sequence[Solution], name: str) -> np.ndarray:
    return np.stack([np.asarray(getattr(solution, name)) for solution in solutions])
