"""A problem: points, targets and loss, whose shapes are all checked here."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Shaped

from .._custom_types import Inputs
from .._internal.validation import as_array, require_finite, require_supported_dtype
from .inputs import (
    as_inputs,
    count,
    floating_dtype,
    join,
    require_same_layout,
    take,
)
from .losses import AbstractLoss, SquaredError


class Problem(eqx.Module):
    """A data set and a loss.

    **Arguments:**

    - `x_train`: training inputs, shape `(n, *in)`, n ≥ 1; or a dict, a tuple or another
        pytree of arrays that share the leading axis n, for networks whose input has
        several parts. The network is called with one entry of each.
    - `y_train`: n training targets, in the format that `loss` expects.
    - `x_test`: test inputs, shape `(q, *in)`, or a pytree of the same structure; none
        by default.
    - `loss`: an [`nth.AbstractLoss`][]; L is its mean over the n training points, so
        the default is the paper's L = 1/(2n) Σ (f − y)².

    Inputs are float32 unless `jax_enable_x64` is set. Solves use their dtype, or that
    of the network's parameters if no input is floating-point.

    **Raises:** `ValueError` if lengths, shapes or dtypes do not match, if an entry is
    NaN or infinite, or if there are no training points.
    """

    x_train: Inputs
    y_train: Shaped[Array, "n ..."]
    x_test: Inputs
    loss: AbstractLoss

    def __init__(
        self,
        x_train: Any,
        y_train: ArrayLike | Sequence[Any],
        x_test: Any = None,
        *,
        loss: AbstractLoss = SquaredError(),
    ):
        if not isinstance(loss, AbstractLoss):
            raise ValueError(
                f"loss must be an nth loss, such as nth.SquaredError(); got {loss!r}. "
                "Wrap a function of one output and one target in nth.CustomLoss(fn)."
            )
        x_train = as_inputs("x_train", x_train)
        y_train = as_array("y_train", y_train)
        require_supported_dtype("y_train", y_train.dtype)
        n = count(x_train)
        if n == 0:
            raise ValueError("x_train has no point: give at least one training point.")
        if y_train.ndim == 0 or y_train.shape[0] != n:
            raise ValueError(
                f"y_train has shape {y_train.shape} and x_train {n} points: give one "
                "target for each training point."
            )
        if x_test is None:
            x_test = take(x_train, slice(0))
        else:
            x_test = as_inputs("x_test", x_test)
            require_same_layout("x_test", x_test, "x_train", x_train)
        dtype = floating_dtype(x_train) or floating_dtype(y_train)
        dtype = dtype or jnp.result_type(float)
        self.x_train = x_train
        self.y_train = loss.check_targets(require_finite("y_train", y_train), dtype)
        self.x_test = x_test
        self.loss = loss

    @property
    def x(self) -> Inputs:
        """All m = n + q points, training points first."""
        return join(self.x_train, self.x_test)

    @property
    def n_train(self) -> int:
        """The number n of training points."""
        return count(self.x_train)

    @property
    def n_test(self) -> int:
        """The number q of test points."""
        return count(self.x_test)

    def matched_to(self, output: jax.ShapeDtypeStruct) -> "Problem":
        """This problem with its targets checked against one network `output`."""
        if not (hasattr(output, "shape") and hasattr(output, "dtype")):
            raise ValueError(
                "output must be one output of the network or its jax.ShapeDtypeStruct, "
                f"such as jax.eval_shape(network, x); got {output!r}."
            )
        targets = self.loss.check_outputs(self.y_train, output)
        return eqx.tree_at(lambda problem: problem.y_train, self, targets)
