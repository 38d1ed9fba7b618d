"""The catapult map: gradient descent of a two-layer linear network, in two numbers."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._errors import as_array, require_integer
from ._types import Scalar

Phase = Literal["lazy", "catapult", "divergent"]


class Catapult(eqx.Module):
    """Output and NTK at each step: see [`nth.catapult`][]."""

    outputs: Float[Array, " S"]
    """f at step 0 … N."""

    ntk: Float[Array, " S"]
    """λ = K⁽²⁾ at step 0 … N."""

    loss: Float[Array, " S"]
    """½(f − y)²."""

    learning_rate: Scalar

    @property
    def phase(self) -> Phase:
        """By the rate η and the NTK λ₀ at step 0: `"lazy"` for η < 2/λ₀, `"catapult"`
        up to 4/λ₀, `"divergent"` beyond. Needs values, so not under `jax.jit`."""
        product = float(self.learning_rate * self.ntk[0])
        return "lazy" if product < 2 else "catapult" if product < 4 else "divergent"


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

    - `output`, `ntk`: f and λ = (‖u‖² + ‖v‖²)/N at step 0.
    - `learning_rate`: η.
    - `width`: N.
    - `steps`: how many steps to take.
    - `target`: y.

    **Returns:** [`nth.Catapult`][]: `outputs`, `ntk`, `loss`, `phase`. Values that
    diverge are infinite, then NaN.

    **Raises:** `ValueError` for a width below 1 or numbers that are none.
    """
    width = require_integer("width", width, 1)
    steps = require_integer("steps", steps, 0)
    given = {
        "output": output,
        "ntk": ntk,
        "learning_rate": learning_rate,
        "target": target,
    }
    f, ntk, rate, y = (_as_scalar(name, value) for name, value in given.items())
    outputs, kernels = _iterate(f, ntk, rate, y, jnp.asarray(width, f.dtype), steps)
    return Catapult(outputs, kernels, (outputs - y) ** 2 / 2, rate)


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
    if number.shape != ():
        raise ValueError(f"{name} must be one number; got shape {number.shape}.")
    return number.astype(jnp.result_type(float))
