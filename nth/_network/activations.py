"""Activations by name, and the softplus family of the paper."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from .._internal.derivatives import refusing_derivatives
from .._internal.validation import require_name


class _Softplus(eqx.Module):
    """x ↦ ln(1 + e^{ax})/a."""

    a: float = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        return jax.nn.softplus(self.a * x) / self.a


def softplus(a: float = 1.0) -> Callable[[Array], Array]:
    """The activation σ_a(x) = ln(1 + e^{ax})/a, which tends to ReLU as a → ∞.

    It satisfies Assumption 2.1 of Huang & Yau (2020) for every a > 0.

    **Arguments:** `a`, the steepness; `a=1` is the activation `"softplus"`.

    **Returns:** an elementwise function, for `activation` of [`nth.MLP`][].

    **Raises:** `ValueError` if `a` is not a number above zero.
    """
    number = isinstance(a, int | float) and not isinstance(a, bool)
    if not number or not 0 < a < float("inf"):
        raise ValueError(f"a must be a finite number above 0; got {a!r}.")
    return _Softplus(float(a))


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _linear(x: Array) -> Array:
    return x


class _Named:
    """A function that is pickled and copied by its name.

    Functions of JAX are jitted, and jitted functions cannot be pickled. There is one
    object for each name in a process, so that copies are equal and share jit caches.
    """

    def __init__(self, name: str, function: Callable[[Array], Array]):
        self.__name__ = name
        self.function = function

    def __call__(self, x: Array) -> Array:
        return self.function(x)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return as_activation, (self.__name__,)

    def __repr__(self) -> str:
        return f"<activation {self.__name__}>"


_NAMED = {
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "relu": jax.nn.relu,
    "gelu": _gelu,
    "sigmoid": jax.nn.sigmoid,
    "sin": jnp.sin,
    "linear": _linear,
}

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {name: _Named(name, function) for name, function in _NAMED.items()}
    | {"softplus": softplus(1.0)}
)


def as_activation(
    activation: str | Callable[[Array], Array],
) -> Callable[[Array], Array]:
    """The function with a given name.

    A callable is returned unchanged, unless it is a function with a name, such as
    `jax.nn.relu`.
    """
    if not callable(activation):
        return ACTIVATIONS[require_name("activation", activation, ACTIVATIONS)]
    for name, function in _NAMED.items():
        if activation is function:
            return ACTIVATIONS[name]
    return activation


def elementwise_activation(
    activation: str | Callable[[Array], Array], dtype: DTypeLike
) -> Callable[[Array], Array]:
    """The function of `activation`, with checked shapes.

    **Raises:** `ValueError` unless it maps each entry of an array to a number of the
    same dtype, and `jax.jvp` differentiates it twice.
    """
    function = as_activation(activation)
    if is_named(function):
        return function
    z = jax.ShapeDtypeStruct((3,), dtype)

    def second(z: Array) -> tuple[Array, Array]:
        def slope(z: Array) -> Array:
            return jax.jvp(function, (z,), (jnp.ones_like(z),))[1]

        return function(z), jax.jvp(slope, (z,), (jnp.ones_like(z),))[1]

    try:
        value, _ = jax.eval_shape(second, z)
    except Exception as error:
        raise ValueError(
            "activation must be an elementwise function of an array that jax.jvp "
            f"differentiates (jax.custom_vjp has no forward mode). Error: {error}"
        ) from error
    if (value.shape, value.dtype) != (z.shape, z.dtype):
        raise ValueError(
            "activation must map each entry of an array to a number of the same dtype; "
            f"it maps shape {z.shape}, {z.dtype}, to {value.shape}, {value.dtype}."
        )
    return function


def is_named(function: Callable[[Array], Array]) -> bool:
    """Whether it is a function of `ACTIVATIONS`, of which nothing must be checked."""
    return any(function is known for known in ACTIVATIONS.values())


def refuse_derivative(function: Callable[[Array], Array], dtype: DTypeLike) -> None:
    """Raise `ValueError` if `function` closes over a value that is differentiated, now
    or, under `jax.jit`, when the compiled function is differentiated."""
    if not is_named(function):
        _without_derivative(function(jnp.ones(1, dtype)))


_without_derivative = refusing_derivatives(
    "activation depends on a value that is differentiated, but nth.infinite.kernels "
    "is differentiable in its inputs and scales only. Apply jax.lax.stop_gradient to "
    "that value."
)
