"""Sweeps over widths and initializations."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._internal.checkpoint import Checkpoint, fingerprint, require_path
from .._internal.frames import require_pandas
from .._internal.precision import full_precision
from .._internal.progress import delayed_bar
from .._internal.validation import (
    require_bool,
    require_callable,
    require_concrete,
    require_integer,
    require_key,
)
from .._network.memory import require_memory
from .._problem.inputs import require_like
from ._exponent import Exponent, fit

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Measure = Callable[[int, PRNGKeyArray], PyTree[Float[Array, ""]]]


class Sweep(eqx.Module):
    """The result of [`nth.scaling.sweep`][]."""

    widths: tuple[int, ...] = eqx.field(static=True)
    """The W widths."""

    values: PyTree[Float[np.ndarray, "W I"]]
    """The values of `measure`, each scalar an array over widths and initializations."""

    def __repr__(self) -> str:
        values = eqx.tree_pformat(self.values, width=60)
        return f"Sweep(widths={self.widths}, values={values})"

    def plot(self, axes: Any = None) -> "Figure":
        """A figure: medians over initializations against the width, with quartiles.

        Values that are positive at three widths or more have their power law as a
        dashed line, and its exponent with the 95 % interval of [`nth.scaling.fit`][]
        in the legend. Absolute values are shown.

        **Arguments:** `axes`, one matplotlib axes; by default a new figure is made.

        Needs matplotlib: `pip install 'neural-tangent-hierarchy[examples]'`.
        """
        from ..plot._sweep import plot_sweep

        return plot_sweep(
            self, [self._law(v) for v in jax.tree.leaves(self.values)], axes
        )

    def to_dataframe(self) -> "pandas.DataFrame":
        """The values as a table, with a row for each width and initialization.

        **Returns:** a data frame with the columns `width`, `initialization`, and one
        for each value of `measure`: named by its place in the pytree, such as `ntk`
        for an entry of a dict, or `value` for a single scalar.

        Needs pandas: `pip install 'neural-tangent-hierarchy[examples]'`.
        """
        pandas = require_pandas("Sweep.to_dataframe")
        leaves = jax.tree_util.tree_leaves_with_path(self.values)
        columns = {
            jax.tree_util.keystr(path, simple=True, separator=".") or "value": values
            for path, values in leaves
        }
        count = leaves[0][1].shape[1]
        index = {
            "width": np.repeat(self.widths, count),
            "initialization": np.tile(np.arange(count), len(self.widths)),
        }
        flat = {name: np.ravel(values) for name, values in columns.items()}
        return pandas.DataFrame({**index, **flat})

    def _law(self, values: np.ndarray) -> Exponent | None:
        """The law of the medians; `None` if there are too few values, or zeros."""
        sizes = np.abs(values)
        few = len(self.widths) < 3 or values.shape[1] < 2
        if few or not np.all(np.median(sizes, axis=1) > 0):
            return None
        return fit(self.widths, sizes, statistic=np.median)


@full_precision
def sweep(
    measure: Measure,
    widths: Sequence[int],
    initializations: int,
    *,
    key: PRNGKeyArray,
    batch_size: int = 16,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Sweep:
    """Evaluate `measure` at each width for many initializations.

    **Arguments:**

    - `measure`: `measure(width, key)` initializes a network and returns a scalar, or a
        pytree of scalars. It must be compatible with `jax.jit` and `jax.vmap`.
    - `widths`: distinct integers.
    - `initializations`: the number of keys at each width. No two widths share a key.
    - `key`: a `jax.random.key`. The keys at a width do not depend on the other widths.
    - `batch_size`: the largest number of keys evaluated together under `jax.vmap`.
    - `path`: a file to save to after each batch. An interrupted sweep that is run again
        resumes from there and gives the same result.
    - `progress`: whether to show a progress bar once the work has taken 5 seconds.

    **Returns:** [`nth.scaling.Sweep`][].

    **Raises:** `ValueError` for invalid widths, a `measure` that does not return
    scalars, or a file that is damaged, belongs to another sweep or cannot be written.
    """
    require_callable("measure", measure, "measure(width, key)")
    sizes = _checked_widths(widths)
    count = require_integer("initializations", initializations, 1)
    require_concrete("key", key, "scaling.sweep")
    require_key("key", key)
    progress = require_bool("progress", progress)
    most = min(require_integer("batch_size", batch_size, 1), count)
    batch = -(-count // -(-count // most))  # equal sizes: each new size is compiled
    values = _empty(measure, sizes, count, key)
    batches = [
        (i, np.arange(first, min(first + batch, count)))
        for i in range(len(sizes))
        for first in range(0, count, batch)
    ]
    done, file = 0, None
    if path is not None:
        path = require_path("path", path)
        file = _file(path, measure, sizes, count, batch, key)
        done, values = _resumed(file, values, len(batches))
    bar = delayed_bar(total=len(batches), initial=done, disable=not progress)
    for step in range(done, len(batches)):
        i, numbers = batches[step]
        bar.set_description(f"width {sizes[i]}")
        measured = _batch(measure, sizes[i], key, jnp.asarray(numbers))
        require_concrete("measure", measured, "scaling.sweep")
        for kept, new in zip(*map(jax.tree.leaves, (values, measured)), strict=True):
            kept[i, numbers] = np.asarray(new)
        if file is not None:
            file.write((step + 1, values))
        bar.update()
    bar.close()
    return Sweep(sizes, values)


def _empty(
    measure: Measure, sizes: tuple[int, ...], count: int, key: PRNGKeyArray
) -> PyTree[Float[np.ndarray, "W I"]]:
    """Arrays of NaN for the values, which must have one structure at every width."""
    like, *others = (_measured(measure, size, key) for size in sizes)
    for size, other in zip(sizes[1:], others, strict=True):
        require_like(f"measure at width {size}", other, like, f"that at {sizes[0]}")
    leaves = jax.tree.leaves(like)
    needed = len(sizes) * count * sum(leaf.dtype.itemsize for leaf in leaves)
    purpose = f"keeping {count} values for each width"
    require_memory("initializations", purpose, needed, "Give a smaller number.")
    shape = (len(sizes), count)
    return jax.tree.map(lambda leaf: np.full(shape, np.nan, leaf.dtype), like)


def _resumed(file: Checkpoint, values: PyTree, total: int) -> tuple[int, PyTree]:
    """The number of batches done, and the values, of an interrupted sweep."""
    done, values = file.read((np.zeros((), int), values)) or (0, values)
    if not 0 <= int(done) <= total:
        raise file.damaged(f"it has {done} of {total} batches")
    return int(done), values


@eqx.filter_jit
def _batch(measure: Measure, width: int, key: PRNGKeyArray, numbers: Array) -> Any:
    at_width = jax.random.fold_in(key, width)

    def measure_one(number: Array) -> Any:
        return measure(width, jax.random.fold_in(at_width, number))

    return jax.vmap(measure_one)(numbers)


def _measured(measure: Measure, width: int, key: PRNGKeyArray) -> PyTree:
    """The shapes and dtypes of the values of `measure`, checked to be float scalars."""
    try:
        like = eqx.filter_eval_shape(measure, width, key)
    except Exception as error:
        raise ValueError(
            f"measure failed for the width {width} and a key; it must be a function "
            f"measure(width, key) that works under jax.jit: {error}"
        ) from error
    leaves = jax.tree.leaves(like)
    kinds = [(getattr(s, "shape", None), getattr(s, "dtype", type(s))) for s in leaves]
    for shape, dtype in kinds or [(None, None)]:
        if shape != () or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                "measure must return floating scalars, as JAX arrays in a pytree; got "
                f"shape {shape} and dtype {dtype}."
            )
    return like


def _checked_widths(widths: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(require_integer("widths", width, 1) for width in widths)
    except TypeError:  # not a sequence
        raise ValueError(
            f"widths must be a sequence of integers; got {widths!r}."
        ) from None
    if not sizes or len(set(sizes)) < len(sizes):
        raise ValueError(f"widths must be distinct, at least one; got {sizes}.")
    return sizes


def _file(
    path: str | os.PathLike[str],
    measure: Measure,
    sizes: tuple[int, ...],
    count: int,
    batch: int,
    key: PRNGKeyArray,
) -> Checkpoint:
    # A function is identified by what it computes: its name is not reliable.
    traced = eqx.filter_make_jaxpr(measure)(sizes[0], key)
    identity = (str(traced[0]), traced[0].consts, sizes, count, batch)
    return Checkpoint(
        path,
        fingerprint(identity, jax.random.key_data(key)),
        argument="path",
        foreign="belongs to another sweep: its measure, widths, initializations, "
        "batch_size or key differ",
    )
