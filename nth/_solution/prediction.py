"""The abstract base of all predictions: outputs and loss at the requested times."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._internal.clock import clock_of
from .._internal.validation import is_traced

if TYPE_CHECKING:
    import pandas


class AbstractPrediction(eqx.Module):
    """Outputs on training and test points, and the training loss, over time.

    [`nth.Solution`][], [`nth.Trajectory`][] and [`nth.Perturbation`][] are predictions;
    [`nth.compare`][] compares any of them with the trained network.
    """

    ts: eqx.AbstractVar[Float[Array, " T"] | Int[Array, " T"]]
    """The requested times; for discrete training the steps, as integers."""

    train: eqx.AbstractVar[Float[Array, "T n *out"]]
    """Outputs on the training points."""

    test: eqx.AbstractVar[Float[Array, "T q *out"]]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: eqx.AbstractVar[Float[Array, " T"]]
    """The training loss L of those outputs."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """The outputs as a table, with a row for each time, point and output.

        **Returns:** a data frame with the columns `time` (`step` for discrete
        training), `points` (`"train"` or `"test"`), `point`, `output` unless the
        network is scalar, `value`, and `error_estimate` where each output has one.

        Needs pandas: `pip install 'neural-tangent-hierarchy[examples]'`.

        **Raises:** `ValueError` under `jax.jit`, and for a batch of predictions.
        """
        from .tables import prediction_table

        return prediction_table(self)


def is_shown(ts: Array, *others: Any) -> bool:
    """Whether a short description can be given: of one solve, with known values."""
    return not is_traced(ts, *others, jnp.zeros(())) and ts.ndim == 1 and ts.size > 0


def times_text(ts: Array) -> str:
    """Such as `5 times from 0 to 10`, or `3 steps from 0 to 2`."""
    return f"{len(ts)} {clock_of(ts)}s from {ts[0]:.4g} to {ts[-1]:.4g}"


def summary(
    prediction: AbstractPrediction,
    *about: str,
    ended: Callable[[], str] | None = None,
) -> str:
    """A one-line `repr`, such as `Solution(level-3 hierarchy, 5 times from 0 to 10,
    8 training and 4 test points, loss 0.52 to 0.013, successful)`.

    Of traced or batched values the shapes are shown, as `eqx.tree_pformat` does."""
    ts, loss = prediction.ts, prediction.loss
    if not is_shown(ts, loss):
        return eqx.tree_pformat(prediction)
    points = prediction.train.shape[1], prediction.test.shape[1]
    parts = (
        *about,
        times_text(ts),
        f"{points[0]} training and {points[1]} test points",
        f"loss {loss[0]:.3g} to {loss[-1]:.3g}",
        *([] if ended is None else [ended()]),
    )
    return f"{type(prediction).__name__}({', '.join(parts)})"
