"""Comparison of levels with the trained network: errors, table, figure, data set."""

from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._integrate.estimates import rms_over_points
from .._internal.clock import clock_of
from .._internal.validation import require_concrete, require_name
from .._problem.losses import SoftmaxCrossEntropy
from .._problem.problem import Problem
from .._solution.prediction import AbstractPrediction, is_shown, times_text
from .._solution.solution import Solution
from .table import name_of, table

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

Points = Literal["train", "test"]


class Comparison(eqx.Module):
    """Solutions of several levels, compared with the trained network.

    `print(comparison)` shows a table; see also `plot` and `to_xarray`.
    """

    truth: Solution
    """The trained network."""

    solutions: dict[int, Solution]
    """The truncated hierarchy, by level p."""

    problem: Problem
    """The points, targets and loss."""

    y_test: Array | None
    """Test targets, used for the test accuracy only."""

    models: dict[str, AbstractPrediction] = eqx.field(default_factory=dict)
    """Other models of training, by name."""

    @property
    def ts(self) -> Float[Array, " T"] | Int[Array, " T"]:
        """The requested times, or steps."""
        return self.truth.ts

    @property
    def clock(self) -> Literal["time", "step"]:
        """Whether `ts` holds times or steps of an optimizer."""
        return clock_of(self.ts)

    @property
    def every(self) -> dict[int | str, AbstractPrediction]:
        """`solutions` followed by `models`."""
        return {**self.solutions, **self.models}

    def error(self, order: int | str, points: Points = "test") -> Float[Array, " T"]:
        """Root-mean-square error of level `order`, or of the model of that name,
        against the trained network at each time, over `points` and outputs; NaN where
        there is no value.
        """
        require_name("points", points, ("train", "test"))
        truth = getattr(self.truth, points)
        difference = getattr(self._solution(order), points) - truth
        if truth.shape[1] == 0:
            raise ValueError("points: problem has no test points; give it an x_test.")
        return rms_over_points(difference)

    def error_estimate(
        self, order: int | str, points: Points | None = None
    ) -> Float[Array, " T"]:
        """The estimate that level `order` makes of its own `error`, with no trained
        network; over all points, or over `points`. NaN where there is no estimate.
        """
        if points is not None:
            require_name("points", points, ("train", "test"))
        errors = getattr(self._solution(order), "output_errors", None)
        if errors is None:
            return jnp.full(self.ts.shape, jnp.nan, self.truth.loss.dtype)
        n = self.problem.n_train
        rows = {None: errors, "train": errors[:, :n], "test": errors[:, n:]}[points]
        return rms_over_points(rows)

    def trusted_until(self, order: int | str, share: float = 0.1) -> float:
        """The first requested time at which the estimated error of level `order` is
        more than `share` of the predicted change; ∞ if it never is, NaN if unknown."""
        prediction = self._solution(order)
        if not isinstance(prediction, Solution):
            return float("nan")
        until = prediction.trusted_until(share)
        require_concrete("comparison", until, "Comparison.trusted_until")
        return float(until)

    def accuracy(
        self, order: int | str, points: Points = "test"
    ) -> Float[Array, " T"] | None:
        """The fraction of `points` whose label is predicted correctly at each time, by
        level `order`, by the model of that name, or by the trained network, `"truth"`.

        Labels are the sign of scalar targets ±1, or the class of integer labels,
        one-hot rows or probabilities. `None` if the targets are not labels or were
        not given.
        """
        require_name("points", points, ("train", "test"))
        solution = self.truth if order == "truth" else self._solution(order)
        targets = self.problem.y_train if points == "train" else self.y_test
        if targets is None:
            return None
        outputs = getattr(solution, points)
        require_concrete("comparison", targets, "Comparison.accuracy")
        right = _is_right(outputs, targets, self.problem)
        if right is None:
            return None
        return jnp.where(jnp.isfinite(solution.loss), jnp.mean(right, axis=1), jnp.nan)

    def _solution(self, order: int | str) -> AbstractPrediction:
        if not isinstance(order, int | str) or order not in self.every:
            raise ValueError(
                f"order must be one of the compared levels, {list(self.every)}; "
                f"got {order!r}."
            )
        return self.every[order]

    def valid_until(self, order: int | str) -> float:
        """When level `order`, or the model of that name, left its window; ∞ if it did
        not, or has none."""
        prediction = self._solution(order)
        known = prediction.valid_until if isinstance(prediction, Solution) else np.inf
        require_concrete("comparison", known, "Comparison.valid_until")
        return float(known)

    def __str__(self) -> str:
        return table(self)

    def __repr__(self) -> str:
        if not is_shown(self.ts, self):
            return eqx.tree_pformat(self)
        points: Points = "test" if self.problem.n_test else "train"
        errors = [
            f"{name_of(p)}: {float(self.error(p, points)[-1]):.1e}" for p in self.every
        ]
        return (
            f"Comparison({times_text(self.ts)}, last {points} errors "
            f"{', '.join(errors)})"
        )

    def plot(self, axes: Any = None) -> "Figure":
        """A figure: loss, errors and, for labels, accuracy over time.

        Dashed lines are the estimates that levels make of their own errors, dotted
        vertical lines the times at which they left their window.

        **Arguments:** `axes`, as many matplotlib axes as there are panels: one for the
        loss, one for the errors on training and on test points, one for the accuracy.
        By default a new figure is made.

        Needs matplotlib: `pip install 'neural-tangent-hierarchy[examples]'`.
        """
        from ..plot._comparison import plot_comparison

        require_concrete("comparison", (self, jnp.zeros(())), "Comparison.plot")
        return plot_comparison(self, axes)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Losses, errors and accuracies as a table, with a row for each model and time.

        `model` is as for `to_xarray`. The outputs of a model are in the table of its
        solution, such as `comparison.solutions[4].to_dataframe()`.

        **Returns:** a data frame with the columns `model`, `time` or `step`, `loss`,
        `train_error` and `test_error` (root-mean-square, against the trained network),
        `error_estimate`, and for labels `train_accuracy` and `test_accuracy`.

        Needs pandas: `pip install 'neural-tangent-hierarchy[examples]'`.
        """
        from .export import comparison_table

        require_concrete("comparison", (self, jnp.zeros(())), "Comparison.to_dataframe")
        return comparison_table(self)

    def to_xarray(self) -> "xarray.Dataset":
        """A labeled data set with dimensions such as `model`, `time` and `test_point`.

        `model` is `"truth"` for the trained network, `"p=2"` and so on for levels, or
        the name of another model. Points and outputs are numbered; where inputs are
        arrays, they are the coordinates `x_train` and `x_test` of the points, and the
        targets are `y_train` and `y_test`.

        Needs xarray: `pip install 'neural-tangent-hierarchy[examples]'`.
        """
        from .export import comparison_data_set

        require_concrete("comparison", (self, jnp.zeros(())), "Comparison.to_xarray")
        return comparison_data_set(self)


def _is_right(
    outputs: Float[Array, "T points *out"], targets: Array, problem: Problem
) -> Bool[Array, "T points"] | None:
    """Whether each label is predicted; `None` if the targets are not labels."""
    with jax.ensure_compile_time_eval():  # the outputs may be traced
        signs = bool(jnp.all(jnp.abs(targets) == 1))
        one_hot = bool(jnp.all((targets == 0) | (targets == 1)))
    if jnp.issubdtype(targets.dtype, jnp.integer) and outputs.ndim == 3:
        return jnp.argmax(outputs, axis=2) == targets[None]
    if targets.shape != outputs.shape[1:]:
        return None
    if targets.ndim == 1 and signs:
        return jnp.sign(outputs) == targets[None]
    classes = isinstance(problem.loss, SoftmaxCrossEntropy) or one_hot
    if targets.ndim == 2 and targets.shape[1] > 1 and classes:
        return jnp.argmax(outputs, axis=2) == jnp.argmax(targets, axis=1)[None]
    return None
