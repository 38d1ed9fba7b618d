"""What a wrong argument is told: its name, what came, and how to mend it."""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

Name = TypeVar("Name", bound=str)

# The highest level, degree or number of derivatives: compile time grows exponentially
# where an operation has no rule in Taylor arithmetic, and no use of more is known.
MOST_ORDER = 12


class WindowWarning(UserWarning):
    """A prediction was asked for past the window in which its truncation holds."""


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer, so that no value can be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def require(array: Array, ok: Bool[Array, "..."], message: str) -> Array:
    """`array` where every `ok` holds, else an error: now, or at run time if traced."""
    if is_traced(ok):
        return eqx.error_if(array, ~ok, message)
    if not bool(jnp.all(ok)):  # one number, which every process of several can read
        raise ValueError(message)
    return array


def as_array(argument: str, value: Any) -> Array:
    """`value` as an array of real numbers."""
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{argument} must be an array of numbers; got {type(value).__name__}: "
            f"{error}"
        ) from None
    kind = jnp.issubdtype
    if not any(kind(array.dtype, t) for t in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(
            f"{argument} must hold real numbers; got {type(value).__name__} with dtype "
            f"{array.dtype}."
        )
    return placed_by_compiler(jnp.asarray(array))


def placed_by_compiler(array: Array) -> Array:
    """`array` where it lies; axes of its mesh that are explicit become automatic.

    `jax.make_mesh` makes explicit axes, which take a sharding for every gather.
    """
    if is_traced(array) or not isinstance(array.sharding, NamedSharding):
        return array
    mesh, spec = array.sharding.mesh, array.sharding.spec
    if AxisType.Explicit not in mesh.axis_types or not isinstance(mesh, Mesh):
        return array
    automatic = (AxisType.Auto,) * len(mesh.axis_names)
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)
    return jax.device_put(array, NamedSharding(mesh, spec))


def require_finite(
    argument: str, array: Array, cure: str = "remove or impute those points."
) -> Array:
    """`array`, none of whose entries is NaN or infinite."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    message = f"{argument} has NaN or infinite entries: {cure}"
    return require(array, jnp.isfinite(array), message)


def require_instance(argument: str, value: Any, kind: type, example: str) -> None:
    """Nothing, if `value` is a `kind`."""
    if not isinstance(value, kind):
        raise ValueError(
            f"{argument} must be an {kind.__name__}, such as {example}; got {value!r}."
        )


def require_times(
    ts: Any, dtype: Any, *, with_infinity: bool = False
) -> Float[Array, " T"]:
    """`ts` as times that can be solved for, or a `ValueError`."""
    times = as_array("ts", ts)
    if times.dtype == jnp.bool_:
        raise ValueError("ts must hold numbers; got dtype bool.")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"ts must be a sequence of at least one time; got shape {times.shape}."
        )
    times = times.astype(dtype)
    if with_infinity:
        times = require(times, ~jnp.isnan(times), "ts must be times: it has NaN.")
    else:
        finite = jnp.isfinite(times)
        times = require(times, finite, "ts must be finite: it has NaN or inf.")
    times = require(times, times >= 0, "ts must be at least 0, where training begins.")
    return require(
        times,
        jnp.diff(times) > 0,
        f"ts must be increasing, in {jnp.dtype(dtype)}, the dtype of the solve.",
    )


def require_integer(
    argument: str, value: Any, least: int, most: int | None = None, why: str = ""
) -> int:
    """`value` as an `int` from `least` to `most`; `why` there is a greatest one."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{argument} must be an integer of at least {least}; got {value!r}."
        ) from None
    if number < least:
        raise ValueError(f"{argument} must be at least {least}; got {number}.")
    if most is not None and number > most:
        reason = f", {why}" if why else ""
        raise ValueError(f"{argument} must be at most {most}{reason}; got {number}.")
    return number


def require_order(argument: str, value: Any, least: int = 2) -> int:
    """`value` as a level, degree or order from `least` to `MOST_ORDER`."""
    why = "as the time to compile grows exponentially with it"
    return require_integer(argument, value, least, MOST_ORDER, why)


def require_scale(argument: str, value: Any) -> Any:
    """`value`, a finite scale of at least zero (tracers pass: they have no value)."""
    if is_traced(value):
        return value
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{argument} must be a number; got {value!r}.") from None
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{argument} must be finite and at least 0; got {number}.")
    return number


def require_positive(argument: str, value: Any) -> float:
    """`value` as a finite number above zero."""
    number = float(require_scale(argument, value))
    if number == 0:
        raise ValueError(f"{argument} must be above 0; got 0.")
    return number


def require_name(argument: str, value: Any, known: Iterable[Name]) -> Name:
    """`value`, one of the names `known`; the near match is suggested otherwise."""
    known = list(known)
    if value in known:
        return value
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(repr(name) for name in known)
    raise ValueError(f"{argument} must be one of {names}; got {value!r}.{hint}")
