"""Checks of arguments: a message names the argument, what was received and a cure."""

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
Value = TypeVar("Value")

# The highest level, degree or number of derivatives. Compile time grows exponentially
# where an operation has no rule in Taylor arithmetic, and no use of more is known.
MOST_ORDER = 12


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer, which has no concrete value."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


@eqx.filter_jit
def all_finite(*arrays: Array) -> Bool[Array, ""]:
    """Whether no entry of any of `arrays` is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))


def require_concrete(argument: str, value: Any, purpose: str) -> None:
    """Raise `ValueError` if `value` is traced, because `purpose` needs its numbers.

    Under `jax.jit` results of computations with constants are traced too.
    """
    if is_traced(value):
        raise ValueError(
            f"{argument} has no concrete value under jax.jit, jax.vmap or jax.grad, "
            f"and {purpose} needs one: compute it outside of them."
        )


def require(value: Value, ok: Bool[Array | np.ndarray, "..."], message: str) -> Value:
    """`value`, of one or several arrays; raises an error unless all of `ok` holds, at
    run time if traced."""
    if is_traced(ok):
        return eqx.error_if(value, ~ok, message)
    if not bool(ok.all()):  # a scalar, which each of several processes holds
        raise ValueError(message)
    return value


def as_array(argument: str, value: Any) -> Array:
    """`value` as an array of real numbers.

    Without `jax_enable_x64` JAX stores 32 bits: floats are rounded to float32. Numbers
    that do not fit, and arrays that would become all 0, raise `ValueError`.
    """
    if np.ma.isMaskedArray(value):
        raise ValueError(
            f"{argument} is a masked array, whose mask JAX does not have: give its "
            "entries by .filled(...) or .compressed()."
        )
    try:
        known = isinstance(value, jax.Array)
        array = value if known or is_traced(value) else np.asarray(value)
        array = jnp.asarray(array) if is_traced(array) else array
    except (TypeError, ValueError, OverflowError) as error:
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
    if array.dtype.itemsize > 8:
        raise ValueError(
            f"{argument} has dtype {array.dtype}, which JAX does not have: convert it "
            "with .astype(float)."
        )
    if isinstance(array, np.ndarray):
        _refuse_unfit(argument, array)
    return placed_by_compiler(jnp.asarray(array))


def _refuse_unfit(argument: str, array: np.ndarray) -> None:
    """Raise `ValueError` if a number does not fit the dtype that JAX stores."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype or array.size == 0:
        return
    if jnp.issubdtype(dtype, jnp.integer):
        bounds = jnp.iinfo(dtype)
        unfit = (array < bounds.min) | (array > bounds.max)
    else:
        with np.errstate(over="ignore", under="ignore"):
            stored = array.astype(dtype)
        unfit = np.isfinite(array) & ~np.isfinite(stored)
        if not np.any(stored):  # a small number among larger ones may round to 0
            unfit = array != 0
    if np.any(unfit):
        raise ValueError(
            f"{argument} holds {array[unfit].flat[0]}, which does not fit {dtype}, the "
            "dtype that JAX stores it in. Rescale the numbers, or set "
            'jax.config.update("jax_enable_x64", True).'
        )


def placed_by_compiler(array: Array) -> Array:
    """`array`, with explicit axes of its mesh made automatic.

    `jax.make_mesh` makes explicit axes, which require a sharding for every gather.
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
    argument: str, value: Value, cure: str = "remove or impute those points."
) -> Value:
    """`value`, of arrays none of whose entries is NaN or infinite."""
    leaves = jax.tree.leaves(value)
    floating = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not floating:
        return value
    message = f"{argument} has NaN or infinite entries: {cure}"
    return require(value, all_finite(*floating), message)


def require_supported_dtype(argument: str, dtype: Any) -> None:
    """Raise `ValueError` if `dtype` is a floating dtype of fewer than 32 bits.

    Kernels, error norms and tolerances need at least float32.
    """
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"{argument}: nth computes in float32 or float64, not in "
            f"{jnp.dtype(dtype)}. Use float32 for both the data and the parameters, "
            "for instance by .astype(jnp.float32)."
        )


def require_instance(argument: str, value: Any, kind: type, example: str) -> None:
    """Raise `ValueError` unless `value` is a `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ValueError(
            f"{argument} must be {article} {kind.__name__}, such as {example}; got "
            f"{value!r}."
        )


def require_callable(argument: str, value: Any, example: str) -> None:
    """Raise `ValueError` unless `value` can be called."""
    if not callable(value):
        raise ValueError(f"{argument} must be a function, {example}; got {value!r}.")


def require_bool(argument: str, value: Any) -> bool:
    """`value` as a `bool`; numbers and strings are refused."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{argument} must be True or False; got {value!r}.")
    return bool(value)


def require_key(argument: str, value: Any) -> Any:
    """`value`, one random key of `jax.random.key` or `jax.random.PRNGKey`."""
    try:
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError
        jax.eval_shape(jax.random.split, value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument} must be one random key, such as jax.random.key(0); got "
            f"{value!r}."
        ) from None
    return value


def require_times(
    ts: Any, dtype: Any, *, with_infinity: bool = False
) -> Float[Array, " T"]:
    """`ts` as times in `dtype`, that of the solve.

    **Raises:** `ValueError` unless they are finite, increasing and at least 0.
    """
    times = as_array("ts", ts)
    if times.dtype == jnp.bool_:
        raise ValueError("ts must hold numbers; got dtype bool.")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"ts must be a sequence of at least one time; got shape {times.shape}."
        )
    times = times.astype(dtype)
    # NumPy compiles nothing.
    xp, known = (jnp, times) if is_traced(times) else (np, np.asarray(times))
    if with_infinity:
        times = require(times, ~xp.isnan(known), "ts must not hold NaN.")
    else:
        finite = xp.isfinite(known)
        times = require(times, finite, "ts must be finite: it has NaN or inf.")
    times = require(times, known >= 0, "ts must be at least 0, where training begins.")
    return require(
        times,
        xp.diff(known) > 0,
        f"ts must be increasing, in {jnp.dtype(dtype)}, the dtype of the solve.",
    )


def require_integer(
    argument: str, value: Any, least: int, most: int | None = None, reason: str = ""
) -> int:
    """`value` as an `int` from `least` to `most`; `reason` is the reason for `most`."""
    require_concrete(argument, value, "this function")
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
        suffix = f", {reason}" if reason else ""
        raise ValueError(f"{argument} must be at most {most}{suffix}; got {number}.")
    return number


def require_order(argument: str, value: Any, least: int = 2) -> int:
    """`value` as a level, degree or order from `least` to `MOST_ORDER`."""
    reason = "as the time to compile grows exponentially with it"
    return require_integer(argument, value, least, MOST_ORDER, reason)


def require_scale(argument: str, value: Any) -> Any:
    """`value`, finite and at least zero. A tracer is checked when it runs."""
    if is_traced(value):
        if jnp.shape(value) != ():
            raise ValueError(
                f"{argument} must be a number; got shape {jnp.shape(value)}."
            )
        message = f"{argument} must be finite and at least 0."
        return require(value, jnp.isfinite(value) & (value >= 0), message)
    try:
        kind = np.asarray(value).dtype.kind
        numeric = kind in "fiuV"  # "V": bfloat16 and similar dtypes
        if np.shape(value) != () or not numeric:
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{argument} must be a number; got {value!r}.") from None
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{argument} must be finite and at least 0; got {number}.")
    return number


def require_positive(argument: str, value: Any) -> float:
    """`value` as a finite number above zero."""
    require_concrete(argument, value, "this function")
    number = float(require_scale(argument, value))
    if number == 0:
        raise ValueError(f"{argument} must be above 0; got 0.")
    return number


def require_name(argument: str, value: Any, known: Iterable[Name]) -> Name:
    """`value`, one of the names `known`."""
    known = list(known)
    for name in known:
        if isinstance(value, str) and value == name:
            return name
    names = ", ".join(repr(name) for name in known)
    raise ValueError(
        f"{argument} must be one of {names}; got {value!r}.{near_match(value, known)}"
    )


def near_match(value: Any, known: Iterable[str]) -> str:
    """A sentence with the similar name in `known`, or an empty string."""
    near = difflib.get_close_matches(str(value), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
