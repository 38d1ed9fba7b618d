"""A problem: points, targets and loss, with every shape checked once, here."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Shaped

from ._errors import as_array, require_finite
from ._loss import AbstractLoss, SquaredError


class Problem(eqx.Module):
    """A data set and a loss.

    **Arguments:**

    - `x_train`: training inputs, shape `(n, *in)`, n ≥ 1.
    - `y_train`: training targets, n of them, in the form that `loss` asks for.
    - `x_test`: test inputs, shape `(q, *in)`; none if left out.
    - `loss`: an [`nth.AbstractLoss`][]; L is its mean over the n training points, so
        the default is the paper's L = 1/(2n) Σ (f − y)².

    Inputs are in float32 unless `jax_enable_x64` is set; the solve is in their dtype.

    **Raises:** `ValueError` if lengths, shapes or dtypes do not match, if an entry is
    NaN or infinite, or if there is no training point.
    """

    x_train: Shaped[Array, "n *in"]
    y_train: Shaped[Array, "n ..."]
    x_test: Shaped[Array, "q *in"]
    loss: AbstractLoss

    def __init__(
        self,
        x_train: ArrayLike | Sequence[Any],
        y_train: ArrayLike | Sequence[Any],
        x_test: ArrayLike | Sequence[Any] | None = None,
        *,
        loss: AbstractLoss = SquaredError(),
    ):
        if not isinstance(loss, AbstractLoss):
            raise ValueError(
                f"loss must be an nth loss, such as nth.SquaredError(); got {loss!r}. "
                "Wrap a function of one output and one target in nth.Loss(fn)."
            )
        x_train = _as_points("x_train", x_train)
        y_train = as_array("y_train", y_train)
        x_test = x_train[:0] if x_test is None else _as_points("x_test", x_test)
        if x_train.shape[0] == 0:
            raise ValueError("x_train has no point: give at least one training point.")
        if y_train.ndim == 0 or y_train.shape[0] != x_train.shape[0]:
            raise ValueError(
                f"y_train has shape {y_train.shape} and x_train {x_train.shape}: give "
                "one target for each training point."
            )
        if x_test.shape[1:] != x_train.shape[1:]:
            raise ValueError(
                f"x_test has inputs of shape {x_test.shape[1:]} and x_train of shape "
                f"{x_train.shape[1:]}: they must be equal."
            )
        if x_test.dtype != x_train.dtype:
            raise ValueError(
                f"x_test has dtype {x_test.dtype} and x_train {x_train.dtype}: cast "
                "one of them."
            )
        floating = jnp.issubdtype(x_train.dtype, jnp.floating)
        dtype = x_train.dtype if floating else jnp.result_type(float)
        self.x_train = require_finite("x_train", x_train)
        self.y_train = loss.check_targets(require_finite("y_train", y_train), dtype)
        self.x_test = require_finite("x_test", x_test)
        self.loss = loss

    @property
    def x(self) -> Shaped[Array, "m *in"]:
        """All m = n + q points, training points first."""
        return jnp.concatenate([self.x_train, self.x_test])

    @property
    def n_train(self) -> int:
        """The number n of training points."""
        return self.x_train.shape[0]

    @property
    def n_test(self) -> int:
        """The number q of test points."""
        return self.x_test.shape[0]

    def matched_to(self, output: jax.ShapeDtypeStruct) -> "Problem":
        """This problem, its targets checked against one network `output`."""
        targets = self.loss.check_outputs(self.y_train, output)
        return eqx.tree_at(lambda problem: problem.y_train, self, targets)


def _as_points(argument: str, value: Any) -> Array:
    array = as_array(argument, value)
    if array.ndim == 0:
        raise ValueError(
            f"{argument} must have shape (points, *in), one input a row; got a scalar."
        )
    return array
