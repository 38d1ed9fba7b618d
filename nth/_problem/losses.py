"""Losses: the value L and the output gradient g = ∂L/∂f.

Everywhere in this library L = (1/n) Σ_i ℓ(f_i, y_i), the mean over the n training
points, so that 1/n sits inside g and in no other place.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PyTree, Shaped

from .._custom_types import Scalar
from .._internal.static import Static
from .._internal.validation import as_array, require


class AbstractLoss(eqx.Module):
    """A loss ℓ(f, y) of one point; L is its mean over the training points."""

    @abc.abstractmethod
    def pointwise(self, output: Float[Array, "*out"], target: Array) -> Scalar:
        """ℓ(f, y) of one point, summed over its outputs."""

    @abc.abstractmethod
    def check_targets(
        self, targets: Shaped[Array, "n ..."], dtype: DTypeLike
    ) -> Shaped[Array, "n ..."]:
        """`targets` in the form that this loss computes with, or a `ValueError`."""

    @abc.abstractmethod
    def check_outputs(
        self, targets: Shaped[Array, "n ..."], output: jax.ShapeDtypeStruct
    ) -> Shaped[Array, "n ..."]:
        """`targets`, if they fit one network `output`, else a `ValueError`."""

    def __call__(
        self, outputs: Float[Array, "n *out"], targets: Shaped[Array, "n ..."]
    ) -> Scalar:
        """L = (1/n) Σ_i ℓ(f_i, y_i)."""
        outputs, targets = _checked_pair(outputs, targets)
        return jnp.mean(jax.vmap(self.pointwise)(outputs, targets))

    def gradient(
        self, outputs: Float[Array, "n *out"], targets: Shaped[Array, "n ..."]
    ) -> Float[Array, "n *out"]:
        """g_i = ∂L/∂f_i, the 1/n included."""
        outputs, targets = _checked_pair(outputs, targets)
        return jax.grad(self.__call__)(outputs, targets)


class SquaredError(AbstractLoss):
    """ℓ(f, y) = ½‖f − y‖²: the paper's loss, L = 1/(2n) Σ (f − y)², with g = (f − y)/n.

    Targets have the shape of the outputs, `(n, *out)`.
    """

    def pointwise(self, output, target):
        output, target = _of_one_shape(output, target)
        return jnp.sum((output - target) ** 2) / 2

    def check_targets(self, targets, dtype):
        return _as_real(targets, dtype)

    def check_outputs(self, targets, output):
        return _same_shape(targets, output)


class SoftmaxCrossEntropy(AbstractLoss):
    """ℓ(f, y) = −Σ_c y_c ln softmax(f)_c, for a network of C outputs.

    Targets are integer labels 0 … C−1 of shape `(n,)`, or probabilities `(n, C)`.
    """

    def pointwise(self, output, target):
        output, target = as_array("output", output), as_array("target", target)
        if output.ndim != 1 or output.size < 2:
            raise ValueError(
                "output of one point must have shape (C,) for SoftmaxCrossEntropy, "
                f"with C >= 2 classes; got {output.shape}."
            )
        labeled = jnp.issubdtype(target.dtype, jnp.integer)
        if target.shape != (() if labeled else output.shape):
            raise ValueError(
                "target of one point must be an integer label, or probabilities of "
                f"shape {output.shape}, that of output; got shape {target.shape} and "
                f"dtype {target.dtype}."
            )
        log_probabilities = jax.nn.log_softmax(output)
        if labeled:
            return -log_probabilities[target]
        return -jnp.sum(target * log_probabilities)

    def check_targets(self, targets, dtype):
        targets = as_array("y_train", targets)
        if jnp.issubdtype(targets.dtype, jnp.integer):
            if targets.ndim != 1:
                raise ValueError(
                    "y_train holds integers, so SoftmaxCrossEntropy takes them for "
                    f"labels of shape (n,); got shape {targets.shape}. Give one-hot "
                    "or other probabilities as floats."
                )
            message = "y_train has labels below 0: labels count from 0 to C - 1."
            return require(targets, targets >= 0, message)
        targets = _as_real(targets, dtype)
        if targets.ndim != 2:
            raise ValueError(
                f"y_train has dtype {targets.dtype} and shape {targets.shape}: "
                "SoftmaxCrossEntropy takes integer labels (n,), cast by "
                ".astype(int), or probabilities (n, C)."
            )
        total = jnp.sum(targets, axis=1)
        proper = jnp.all(targets >= 0, axis=1) & (jnp.abs(total - 1) < 1e-3)
        message = (
            "y_train has rows that are not probabilities: no entry may be negative, "
            "and each row must sum to 1."
        )
        return require(targets, proper, message)

    def check_outputs(self, targets, output):
        if output.ndim != 1 or output.shape[0] < 2:
            raise ValueError(
                f"network has outputs of shape {output.shape}: SoftmaxCrossEntropy "
                "takes one output for each of C >= 2 classes, shape (C,)."
            )
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            return _same_shape(targets, output)
        (classes,) = output.shape
        message = (
            f"y_train has labels of {classes} or more, and the network has {classes} "
            f"outputs: labels count from 0 to {classes - 1}."
        )
        return require(targets, targets < classes, message)


class LogisticLoss(AbstractLoss):
    """ℓ(f, y) = ln(1 + e^{−y f}), labels y = ±1; summed over outputs if several.

    Targets have the shape of the outputs, `(n, *out)`.
    """

    def pointwise(self, output, target):
        output, target = _of_one_shape(output, target)
        return jnp.sum(jax.nn.softplus(-target * output))

    def check_targets(self, targets, dtype):
        targets = _as_real(targets, dtype)
        message = "y_train must hold labels -1 and +1 for LogisticLoss (not 0 and 1)."
        return require(targets, jnp.abs(targets) == 1, message)

    def check_outputs(self, targets, output):
        return _same_shape(targets, output)


class CustomLoss(AbstractLoss):
    """Any ℓ(f, y): `fn(output, target)` of one point, differentiable in `output`.

    **Arguments:**

    - `fn`: takes one output `(*out)` and one target, returns a scalar. The mean over
        the training points is taken by the library. If `fn` is a pytree, such as an
        `eqx.Module` or a `jax.tree_util.Partial`, its arrays can be differentiated.
    """

    arrays: PyTree[Array]
    static: Static = eqx.field(static=True)

    def __init__(self, fn: Callable[[Array, Array], Array]):
        if not callable(fn):
            raise ValueError(f"fn must be a function fn(output, target); got {fn!r}.")
        self.arrays, rest = eqx.partition(fn, eqx.is_array)
        self.static = Static(rest)

    @property
    def fn(self) -> Callable[[Array, Array], Array]:
        """The function."""
        return eqx.combine(self.arrays, self.static.tree)

    def pointwise(self, output, target):
        value = self.fn(output, target)
        shape = getattr(value, "shape", () if _is_number(value) else None)
        if shape != ():
            got = repr(value) if shape is None else f"shape {shape}"
            raise ValueError(f"fn must return a scalar for one point; got {got}.")
        return jnp.asarray(value)

    def check_targets(self, targets, dtype):
        return targets

    def check_outputs(self, targets, output):
        target = jax.ShapeDtypeStruct(targets.shape[1:], targets.dtype)
        try:
            value = jax.eval_shape(self.fn, output, target)
        except Exception as error:
            raise ValueError(
                f"loss: fn failed for an output of shape {output.shape} and a target "
                f"of shape {target.shape}: {error}"
            ) from error
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if (shape, dtype) != ((), output.dtype):
            raise ValueError(
                f"loss: fn must return a scalar of dtype {output.dtype} for one point; "
                f"it returned {value if shape is None else f'shape {shape}, {dtype}'}."
            )
        return targets


def _checked_pair(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Both as arrays with one entry for each point. Only shapes are checked."""
    outputs, targets = as_array("outputs", outputs), as_array("targets", targets)
    if outputs.ndim == 0 or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            "outputs must be floating, of shape (n, *out); got shape "
            f"{outputs.shape} and dtype {outputs.dtype}."
        )
    if targets.shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"targets has shape {targets.shape} and outputs {outputs.shape}: give one "
            "target for each point."
        )
    return outputs, targets


def _of_one_shape(output: Array, target: Array) -> tuple[Array, Array]:
    """Both as arrays, of one point."""
    output, target = as_array("output", output), as_array("target", target)
    if output.shape != target.shape:
        raise ValueError(
            f"target of one point must have shape {output.shape}, that of output; got "
            f"{target.shape}."
        )
    return output, target


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _as_real(targets: Array, dtype: DTypeLike) -> Array:
    """Integer and boolean targets as floats; other floats must already be `dtype`."""
    targets = as_array("y_train", targets)
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        return targets.astype(dtype)
    if targets.dtype != dtype:
        raise ValueError(
            f"y_train has dtype {targets.dtype} and x_train {dtype}: cast one of them."
        )
    return targets


def _same_shape(targets: Array, output: jax.ShapeDtypeStruct) -> Array:
    """`targets`, if each has the shape and dtype of one `output`."""
    if targets.shape[1:] != output.shape:
        raise ValueError(
            f"y_train has targets of shape {targets.shape[1:]} and the network outputs "
            f"of shape {output.shape}: they must be equal (a scalar network, "
            'out_size="scalar", takes targets of shape (n,)).'
        )
    if targets.dtype != output.dtype:
        raise ValueError(
            f"y_train has dtype {targets.dtype} and the network outputs "
            f"{output.dtype}: cast one of them, for instance by "
            f'y_train.astype("{output.dtype}").'
        )
    return targets
