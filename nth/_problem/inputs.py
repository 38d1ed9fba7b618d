"""Inputs of many points: an array, or a pytree of arrays, with one leading axis."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from .._custom_types import Inputs
from .._internal.validation import as_array, require_finite, require_supported_dtype


def as_inputs(argument: str, value: Any) -> Inputs:
    """`value` as an array, or as a pytree of arrays, with one leading axis.

    A list is an array of points. A tuple of arrays is one input in several parts, as is
    a dict; a tuple of numbers or lists is an array too.

    **Raises:** `ValueError` for a scalar, entries that are not finite real numbers, an
    empty pytree, or parts of different lengths.
    """
    if hasattr(value, "todense"):
        raise ValueError(f"{argument} is sparse: give {argument}.todense().")
    if not _is_pytree(value):
        return _as_points(argument, value)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(value)
    if not leaves:
        raise ValueError(f"{argument} has no array: got {value!r}.")
    arrays = [
        _as_points(f"{argument}{jax.tree_util.keystr(path)}", leaf)
        for path, leaf in leaves
    ]
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{argument} has arrays of {lengths} points: all parts of an input need "
            "one leading axis, of the same length. (A tuple of arrays is one input in "
            "several parts; stack separate points with numpy.stack.)"
        )
    dtypes = {a.dtype.name for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)}
    if len(dtypes) > 1:
        raise ValueError(
            f"{argument} has arrays of dtypes {', '.join(sorted(dtypes))}: cast them "
            "to one floating dtype."
        )
    return jax.tree.unflatten(treedef, arrays)


def _is_pytree(value: Any) -> bool:
    if isinstance(value, list | type(None)):
        return False
    if isinstance(value, tuple):
        parts = jax.tree.leaves(value)
        return bool(parts) and all(
            isinstance(part, jax.Array | np.ndarray) and part.ndim > 0 for part in parts
        )
    return not jax.tree_util.all_leaves([value])


def _as_points(argument: str, value: Any) -> Shaped[Array, "points ..."]:
    array = as_array(argument, value)
    if array.ndim == 0:
        raise ValueError(
            f"{argument} must have shape (points, *in), one input per row; got a "
            "scalar."
        )
    require_supported_dtype(argument, array.dtype)
    return require_finite(argument, array)


def count(x: Inputs) -> int:
    """The number of points."""
    return len(jax.tree.leaves(x)[0])


def take(x: Inputs, index: Any) -> Any:
    """One point, for an integer `index`; several, for a slice or an array."""
    return jax.tree.map(lambda leaf: leaf[index], x)


def join(*parts: Inputs) -> Inputs:
    """The points of all `parts`, in their order."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def floating_dtype(x: Inputs) -> Any:
    """The floating dtype of the inputs; `None` if they hold no floats."""
    for leaf in jax.tree.leaves(x):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.dtype
    return None


def layout(x: Any) -> str:
    """Shape and dtype of each array, for messages."""
    named = jax.tree_util.tree_leaves_with_path(x)
    return ", ".join(
        f"{jax.tree_util.keystr(path)}{' ' if path else ''}{leaf.shape} {leaf.dtype}"
        for path, leaf in named
    )


def _dtypes(x: Any) -> str:
    return ", ".join(str(leaf.dtype) for leaf in jax.tree.leaves(x))


def require_like(argument: str, value: Any, like: Any, source: str) -> None:
    """Raise `ValueError` unless `value` has the structure, shapes and dtypes of `like`.

    `source` is a phrase that says where such a value comes from. Only static structure
    is checked, so compiled code does not contain the check.
    """
    expected, structure = jax.tree.flatten(like)
    if jax.tree.structure(value) != structure:
        raise ValueError(
            f"{argument} is a {type(value).__name__} of another structure than "
            f"{source}: use that."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(value), expected, strict=True)
    for (path, leaf), other in pairs:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if (shape, dtype) != (other.shape, other.dtype):
            got = type(leaf).__name__ if dtype is None else f"shape {shape}, {dtype}"
            raise ValueError(
                f"{argument}{jax.tree_util.keystr(path)} must have shape "
                f"{other.shape} and dtype {other.dtype}, as in {source}; got {got}."
            )


def require_points_like(
    argument: str, x: Any, name: str, like: Inputs, targets: Any = None
) -> None:
    """Raise `ValueError` unless `x` holds points like those of `like`, called `name`,
    as many as there are `targets`."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    (length,) = lengths if len(lengths) == 1 else ((),)
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*length, *leaf.shape[1:]), leaf.dtype), like
    )
    require_like(argument, x, rows, f"{name}, for any number of points")
    if targets is not None and np.shape(targets)[:1] != length:
        raise ValueError(
            f"y has shape {np.shape(targets)} and {argument} {count(x)} points: give "
            "one target for each point."
        )


def require_same_layout(argument: str, x: Inputs, name: str, like: Inputs) -> None:
    """Raise `ValueError` unless points of `x` are like those of `like`, called `name`.

    They must have the same structure, and each array the same shape beyond the leading
    axis and the same dtype.
    """
    own, other = (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
        for xs in (x, like)
    )
    if jax.tree.structure(own) != jax.tree.structure(other):
        raise ValueError(
            f"{argument} has inputs {jax.tree.structure(own)} and {name} "
            f"{jax.tree.structure(other)}: they must have one structure."
        )
    pairs = zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True)
    shapes = [(a.shape, b.shape) for a, b in pairs]
    if any(a != b for a, b in shapes):
        raise ValueError(
            f"{argument} has inputs of shape {layout(own)} and {name} of shape "
            f"{layout(other)}: they must be equal."
        )
    if jax.tree.leaves(own) != jax.tree.leaves(other):
        raise ValueError(
            f"{argument} has dtype {_dtypes(own)} and {name} {_dtypes(other)}: cast "
            "one of them."
        )
