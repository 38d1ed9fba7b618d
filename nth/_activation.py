"""Activations by name, and the softplus family of the paper."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._errors import require_name


class _Softplus(eqx.Module):
    """x ↦ ln(1 + e^{ax})/a."""

    a: float = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        return jax.nn.softplus(self.a * x) / self.a


def softplus(a: float = 1.0) -> Callable[[Array], Array]:
    """The activation σ_a(x) = ln(1 + e^{ax})/a, which tends to ReLU as a → ∞.

    It satisfies Assumption 2.1 of Huang & Yau (2020) for every a > 0.

    **Raises:** `ValueError` if `a` is not a number above zero.
    """
    if not isinstance(a, int | float) or not 0 < a < float("inf"):
        raise ValueError(f"a must be a finite number above 0; got {a!r}.")
    return _Softplus(float(a))


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _linear(x: Array) -> Array:
    return x


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "tanh": jnp.tanh,
        "erf": jax.scipy.special.erf,
        "relu": jax.nn.relu,
        "gelu": _gelu,
        "sigmoid": jax.nn.sigmoid,
        "softplus": softplus(1.0),
        "sin": jnp.sin,
        "linear": _linear,
    }
)


def as_activation(
    activation: str | Callable[[Array], Array],
) -> Callable[[Array], Array]:
    """The function that a name stands for; a callable is returned as it is."""
    if callable(activation):
        return activation
    return ACTIVATIONS[require_name("activation", activation, ACTIVATIONS)]
