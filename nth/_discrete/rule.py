"""The optimizer of discrete training: its learning rate and batch at each step."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from .._custom_types import Scalar
from .._internal.validation import (
    is_traced,
    require,
    require_bool,
    require_concrete,
    require_instance,
    require_integer,
    require_key,
    require_scale,
)
from .._network.memory import require_memory


class GradientDescent(eqx.Module):
    """Minibatch gradient descent with momentum and weight decay: at step s = 0, 1, …,

        d = ∇L_batch(θ) + λ θ,    v ← μ v + d,    θ ← θ − η_s v,

    and with Nesterov momentum d + μ v in place of v. Its steps are those of `optax.sgd`
    after `optax.add_decayed_weights`, and of PyTorch's `SGD`.

    **Arguments:**

    - `learning_rate`: η ≥ 0, or a function of the step, such as an optax schedule.
    - `momentum`: μ, 0 ≤ μ < 1.
    - `nesterov`: whether to use Nesterov momentum.
    - `weight_decay`: λ ≥ 0; adds λ/2 ‖θ‖² to the training loss.
    - `batch_size`: training points per step, all n by default. L_batch is their mean
        loss. Each epoch draws a permutation of the points and splits it into batches,
        without replacement; the n mod `batch_size` points at the end of a permutation
        are left out of that epoch.
    - `key`: a `jax.random.key` for the batches, required with `batch_size`. Batches
        depend only on it, on n and on the step, so they are the same for the network
        and for every level.

    **Raises:** `ValueError` for an invalid number, or an option without effect.
    """

    learning_rate: Any
    momentum: Any
    nesterov: bool = eqx.field(static=True)
    weight_decay: Any
    batch_size: int | None = eqx.field(static=True)
    key: PRNGKeyArray | None

    def __init__(
        self,
        learning_rate: ArrayLike | Callable[[Any], Any],
        *,
        momentum: ArrayLike = 0.0,
        nesterov: bool = False,
        weight_decay: ArrayLike = 0.0,
        batch_size: int | None = None,
        key: PRNGKeyArray | None = None,
    ):
        if not callable(learning_rate):
            learning_rate = require_scale("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        self.momentum = require_momentum(momentum)
        nesterov = require_bool("nesterov", nesterov)
        if nesterov and _is_zero(self.momentum):
            raise ValueError(
                "nesterov changes nothing without momentum: give a momentum above 0."
            )
        self.nesterov = nesterov
        self.weight_decay = require_scale("weight_decay", weight_decay)
        if batch_size is not None:
            batch_size = require_integer("batch_size", batch_size, 1)
        if (batch_size is None) != (key is None):
            raise ValueError(
                "batch_size and key go together: batches are drawn with the key, such "
                "as key=jax.random.key(0)."
            )
        if key is not None:
            require_key("key", key)
        self.batch_size = batch_size
        self.key = key


def require_momentum(momentum: Any) -> Any:
    """`momentum`, checked to be at least 0 and below 1."""
    momentum = require_scale("momentum", momentum)
    message = "momentum must be below 1, or steps never fade"
    if is_traced(momentum):
        return require(momentum, momentum < 1, f"{message}.")
    if momentum >= 1:
        raise ValueError(f"{message}; got {momentum}.")
    return momentum


def _is_zero(number: Any) -> bool:
    return isinstance(number, float) and number == 0


def require_rule(rule: Any) -> GradientDescent:
    """`rule`, checked to be an [`nth.GradientDescent`][]."""
    require_instance("rule", rule, GradientDescent, "nth.GradientDescent(0.1)")
    return rule


class Plan(eqx.Module):
    """An optimizer over N steps, as arrays: no value is a compile-time constant."""

    steps: Int[Array, " T"]
    """The requested steps, counted from 0, which is before training."""

    slots: Int[Array, " S"]
    """Where each step's outputs are saved: its place in `steps`, or T for nowhere."""

    rates: Float[Array, " N"]
    rows: Int[Array, "N b"] | None
    momentum: Scalar | None
    nesterov: bool = eqx.field(static=True)


def plan(rule: GradientDescent, steps: Any, n_train: int, dtype: Any) -> Plan:
    """The plan of `rule` for `steps`, on `n_train` points, in `dtype`.

    **Raises:** `ValueError` for invalid steps, a batch size above the number of points,
    or a learning rate that is not a number at some step.
    """
    asked = _require_steps(steps)
    number = int(asked[-1])
    _refuse_if_too_long(rule, number)
    slots = np.full(number + 1, len(asked))
    slots[asked] = np.arange(len(asked))
    momentum = rule.momentum
    return Plan(
        steps=jnp.asarray(asked),
        slots=jnp.asarray(slots),
        rates=_rates(rule.learning_rate, number, dtype),
        rows=None if rule.batch_size is None else _rows(rule, number, n_train),
        momentum=None if _is_zero(momentum) else jnp.asarray(momentum, dtype),
        nesterov=rule.nesterov,
    )


def _require_steps(steps: int | Sequence[int] | Any) -> np.ndarray:
    """The requested steps: 0 … N for a number N, else an increasing sequence."""
    require_concrete("steps", steps, "discrete training")
    try:
        array = np.asarray(steps)
    except ValueError:  # a ragged sequence
        array = np.empty(0)
    if array.ndim > 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            "steps must be a number of steps, or an increasing sequence of integers; "
            f"got {steps!r}."
        )
    if np.any(array < 0):
        raise ValueError(f"steps must be at least 0; got {array.min()}.")
    if np.any(array[1:] <= array[:-1] if array.ndim else False):
        raise ValueError(f"steps must be increasing; got {steps!r}.")
    if array.ndim == 0:
        purpose = f"keeping the outputs of {array} steps"
        require_memory("steps", purpose, 64 * int(array), "Give a smaller number.")
        return np.arange(int(array) + 1)
    return array.astype(int)


def _refuse_if_too_long(rule: GradientDescent, number: int) -> None:
    """Raise `ValueError` if the plan of so many steps would not fit in memory."""
    a_step = 16 + 8 * (rule.batch_size or 0)  # its learning rate, slot and batch
    purpose = f"planning {number} steps"
    require_memory("steps", purpose, a_step * number, "Give a smaller number.")


def _rates(learning_rate: Any, number: int, dtype: Any) -> Float[Array, " N"]:
    """η at each step; a schedule that cannot be traced is evaluated step by step."""
    if not callable(learning_rate):
        return jnp.full(number, jnp.asarray(learning_rate, dtype))
    try:
        counted = jnp.arange(number, dtype=jnp.int32)  # as optax counts
        rates = jax.vmap(lambda s: jnp.asarray(learning_rate(s)))(counted)
    except Exception:  # a schedule that looks at the number, or fails
        try:
            rates = jnp.asarray([learning_rate(s) for s in range(number)])
        except Exception as error:
            raise ValueError(
                "learning_rate must be a number, or a function of the step that gives "
                f"one; the function failed: {error}"
            ) from error
    kinds = (jnp.floating, jnp.integer)
    if number > 0 and not any(jnp.issubdtype(rates.dtype, kind) for kind in kinds):
        raise ValueError(
            f"learning_rate must be a real number at each step; got {rates.dtype}."
        )
    if rates.shape != (number,):
        raise ValueError(
            "learning_rate must be a number at each step; the schedule gave shape "
            f"{rates.shape[1:]}."
        )
    rates = rates.astype(dtype)
    message = "learning_rate must be finite and at least 0 at every step."
    return require(rates, jnp.isfinite(rates) & (rates >= 0), message)


def _rows(rule: GradientDescent, number: int, n_train: int) -> Int[Array, "N b"]:
    """The training points in the batch of each step."""
    size, key = rule.batch_size, rule.key
    assert size is not None  # ensured by `plan`; for the type checker
    assert key is not None
    if size > n_train:
        raise ValueError(
            f"batch_size must be at most {n_train}, the number of training points; "
            f"got {size}."
        )
    a_epoch = n_train // size
    epochs = jnp.arange(max(1, -(-number // a_epoch)))

    def one(epoch: Int[Array, ""]) -> Int[Array, "k b"]:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n_train)
        return order[: a_epoch * size].reshape(a_epoch, size)

    return jax.vmap(one)(epochs).reshape(-1, size)[:number]
