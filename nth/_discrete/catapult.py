"""The catapult map: gradient descent of a two-layer linear network, in two numbers."""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._internal.validation import (
    as_array,
    is_traced,
    require,
    require_concrete,
    require_finite,
    require_integer,
)
from .._network.memory import require_memory

Phase = Literal["lazy", "catapult", "divergent"]

# Steps in which a map with a target shows its phase: of 3,000 random ones that diverge,
# all had done so after 20.
_FOLLOWED = 10_000
_MOST_WIDTH = 10**30
# In units of √N/η, in which bounded outputs are of order 1.
_DIVERGED = 1e6


class Catapult(eqx.Module):
    """Output and NTK at each step: see [`nth.catapult`][]."""

    outputs: Float[Array, " S"]
    """f at step 0 … N."""

    ntk: Float[Array, " S"]
    """λ = K⁽²⁾ at step 0 … N."""

    loss: Float[Array, " S"]
    """½(f − y)²."""

    learning_rate: Scalar

    target: Scalar

    width: Scalar

    @property
    def phase(self) -> Phase:
        """What becomes of training if it goes on, by the learning rate η:

        - `"lazy"`: ηλ is below 2 at every step, and f converges.
        - `"catapult"`: ηλ is 2 or more at some step, and f stays bounded.
        - `"divergent"`: f grows without bound.

        For target 0 they are told by the NTK λ₀ at step 0 (Lewkowycz et al. 2020): lazy
        below 2/λ₀, catapult below 4/λ₀, divergent from there on. With a target neither
        boundary holds, as λ may rise: the map is followed for 10,000 steps. From
        η = √N/|y| on no fit is stable, and an f that stays bounded oscillates.

        Needs values, so not under `jax.jit`.
        """
        numbers = (self.outputs[0], self.ntk[0], self.learning_rate, self.target)
        require_concrete("catapult", (*numbers, self.width), "Catapult.phase")
        f, ntk, rate, y = map(float, numbers)
        if y == 0:
            product = rate * ntk
            return "lazy" if product < 2 else "catapult" if product < 4 else "divergent"
        # In units in which η and N are 1.
        unit = float(self.width) ** 0.5 / rate if rate else math.inf
        return _phase(f / unit, rate * ntk, y / unit)


def _phase(f: float, ntk: float, y: float) -> Phase:
    """The phase of f ← f − λe + e²f, λ ← λ + e(λe − 4f), with e = f − y."""
    largest = ntk
    for _ in range(_FOLLOWED):
        push = f - y
        f, ntk = f - push * ntk + push**2 * f, ntk + push * (push * ntk - 4 * f)
        largest = max(largest, ntk)
        if not abs(f) < _DIVERGED:
            return "divergent"
    return "lazy" if largest < 2 else "catapult"


def catapult(
    output: ArrayLike,
    ntk: ArrayLike,
    learning_rate: ArrayLike,
    width: int,
    steps: int,
    *,
    target: ArrayLike = 0.0,
) -> Catapult:
    """Gradient descent of f = Σ_i u_i v_i/√N on ½(f − y)², exactly, from f and λ alone.

    With e = f − y (Lewkowycz et al. 2020, where y = 0),

        f ← f − η λ e + η² e² f/N,        λ ← λ + (η e/N) (η λ e − 4 f).

    This network is `nth.MLP(1, N, 1, activation="linear")` at x = 1, with one training
    point, so η = 2/λ₀ is its [`nth.max_learning_rate`][].

    **Arguments:**

    - `output`, `ntk`: f and λ = (‖u‖² + ‖v‖²)/N at step 0, λ ≥ 2|f|/√N.
    - `learning_rate`: η ≥ 0.
    - `width`: N.
    - `steps`: how many steps to take.
    - `target`: y.

    **Returns:** [`nth.Catapult`][]: `outputs`, `ntk`, `loss`, `phase`. Values that
    diverge are infinite, then NaN.

    **Raises:** `ValueError` for a width below 1, numbers that are not finite, a
    negative learning rate, or an `ntk` that no network of this width and output has.
    """
    width = require_integer("width", width, 1, _MOST_WIDTH, "which fits float32")
    steps = require_integer("steps", steps, 0)
    require_memory(
        "steps", f"keeping {steps} steps", 48 * steps, "Give a smaller number."
    )
    f, ntk = _as_scalar("output", output), _as_scalar("ntk", ntk)
    rate = _as_scalar("learning_rate", learning_rate)
    rate = require(rate, rate >= 0, "learning_rate must be at least 0.")
    y = _as_scalar("target", target)
    number = jnp.asarray(width, f.dtype)
    least = 2 * jnp.abs(f) / jnp.sqrt(number)
    rounding = jnp.finfo(f.dtype).eps ** 0.5
    message = (
        "ntk must be at least 2|output|/sqrt(width), as (|u|^2 + |v|^2)/N is for every "
        "network of this width with this output"
    )
    if not is_traced(least):
        message += f": at least {float(least):.6g}"
    ntk = require(ntk, ntk >= least * (1 - rounding), f"{message}.")
    outputs, kernels = _iterate(f, ntk, rate, y, number, steps)
    return Catapult(outputs, kernels, (outputs - y) ** 2 / 2, rate, y, number)


@eqx.filter_jit
def _iterate(
    f: Scalar, ntk: Scalar, rate: Scalar, y: Scalar, width: Scalar, steps: int
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    def step(carry: tuple[Scalar, Scalar], _: None) -> Any:
        f, ntk = carry
        push = rate * (f - y)
        new = f - push * ntk + push**2 * f / width
        return (new, ntk + push / width * (push * ntk - 4 * f)), (f, ntk)

    last, (outputs, kernels) = jax.lax.scan(step, (f, ntk), None, steps)
    return jnp.append(outputs, last[0]), jnp.append(kernels, last[1])


def _as_scalar(name: str, value: Any) -> Scalar:
    number = as_array(name, value)
    if number.shape != () or number.dtype == jnp.bool_:
        raise ValueError(
            f"{name} must be one number; got shape {number.shape} and dtype "
            f"{number.dtype}."
        )
    number = number.astype(jnp.result_type(float))
    return require_finite(name, number, "give a finite number.")
