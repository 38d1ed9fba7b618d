"""Scaling laws in width: sweeps over widths and initializations, and exponents."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._internal.checkpoint import Checkpoint, fingerprint
from ._internal.progress import delayed_bar
from ._internal.validation import (
    require_bool,
    require_callable,
    require_concrete,
    require_integer,
    require_key,
    require_path,
    require_positive,
)
from ._network.memory import require_memory
from ._problem.inputs import require_like

Measure = Callable[[int, PRNGKeyArray], PyTree[Float[Array, ""]]]

# Bootstrap resamples for a confidence interval.
_RESAMPLES = 2000


class Sweep(NamedTuple):
    """The result of [`nth.scaling.sweep`][]."""

    widths: tuple[int, ...]
    """The W widths."""

    values: PyTree[Float[np.ndarray, "W I"]]
    """The values of `measure`, each scalar an array over widths and initializations."""


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
    like, *others = (_measured(measure, size, key) for size in sizes)
    for size, other in zip(sizes[1:], others, strict=True):
        require_like(f"measure at width {size}", other, like, f"that at {sizes[0]}")
    leaves = jax.tree.leaves(like)
    needed = len(sizes) * count * sum(leaf.dtype.itemsize for leaf in leaves)
    purpose = f"keeping {count} values for each width"
    require_memory("initializations", purpose, needed, "Give a smaller number.")
    values = jax.tree.map(lambda s: np.full((len(sizes), count), np.nan, s.dtype), like)
    done, file = np.zeros((), int), None
    starts = [(i, k) for i in range(len(sizes)) for k in range(0, count, batch)]
    if path is not None:
        path = require_path("path", path)
        file = _file(path, measure, sizes, count, batch, key)
        done, values = file.read((done, values)) or (done, values)
        if not 0 <= int(done) <= len(starts):
            raise file.damaged(f"it has {done} of {len(starts)} batches")
    bar = delayed_bar(total=len(starts), initial=int(done), disable=not progress)
    for step in range(int(done), len(starts)):
        i, first = starts[step]
        bar.set_description(f"width {sizes[i]}")
        numbers = np.arange(first, min(first + batch, count))
        results = _batch(measure, sizes[i], key, jnp.asarray(numbers))
        require_concrete("measure", results, "scaling.sweep")
        for kept, new in zip(*map(jax.tree.leaves, (values, results)), strict=True):
            kept[i, numbers] = np.asarray(new)
        if file is not None:
            file.write((step + 1, values))
        bar.update()
    bar.close()
    return Sweep(sizes, values)


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


class Exponent(NamedTuple):
    """A power law, prefactor · m^slope: see [`nth.scaling.fit`][]."""

    slope: float
    """The exponent of the width."""

    interval: tuple[float, float]
    """A confidence interval of the slope."""

    prefactor: float
    """The value at width 1."""

    r2: float
    """R²: the fraction of the variance of the logarithms that the law explains."""

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.slope:.2f} [{low:.2f}, {high:.2f}]"


def fit(
    widths: Sequence[int] | Sequence[float],
    values: Any,
    *,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
) -> Exponent:
    """The exponent of a power law by least squares on logarithms, with its interval.

    - Values of shape `(W,)` are fitted directly (`scipy.stats.linregress`), and the
        interval is Student's, from the residuals of the fit.
    - Values of shape `(W, I)` are reduced over initializations by `statistic`, and the
        interval is a percentile bootstrap over initializations
        (`scipy.stats.bootstrap`). It accounts for the noise of the initialization, not
        for a deviation from a power law: see `r2`.

    **Arguments:**

    - `widths`: W ≥ 3 widths; or times, for a law in t.
    - `values`: from [`nth.scaling.sweep`][] or elsewhere. The absolute value of the
        statistic is fitted.
    - `statistic`: `statistic(values, axis=-1)`: `numpy.mean`, `numpy.median`,
        `numpy.var` and so on.
    - `confidence`: the confidence level of the interval, between 0 and 1.

    **Returns:** [`nth.scaling.Exponent`][].

    **Raises:** `ValueError` for fewer than three widths, shapes that do not match,
    values that are not finite, or a statistic that is zero.
    """
    require_concrete("widths", widths, "scaling.fit")
    require_concrete("values", values, "scaling.fit")
    at, array = _as_floats("widths", widths), _as_floats("values", values)
    proper = np.all((at > 0) & np.isfinite(at))
    if at.ndim != 1 or len(at) < 3 or not proper or len(set(at)) < len(at):
        raise ValueError(
            "widths must be at least three distinct finite numbers above 0; got "
            f"{widths!r}."
        )
    if array.ndim not in (1, 2) or len(array) != len(at) or array.size == 0:
        raise ValueError(
            f"values must have shape ({len(at)},) or ({len(at)}, initializations), one "
            f"row for each width; got {array.shape}."
        )
    if require_positive("confidence", confidence) >= 1:
        raise ValueError(f"confidence must be below 1; got {confidence}.")
    if not np.all(np.isfinite(array)):
        rows = np.flatnonzero(~np.isfinite(array.reshape(len(at), -1)).all(axis=1))
        raise ValueError(
            f"values are NaN or infinite at widths {at[rows].tolist()}: leave those "
            "out, or find out why the measure failed."
        )
    from scipy import stats  # slow to import

    reduced = np.abs(array if array.ndim == 1 else _reduced(statistic, array))
    if np.any(reduced == 0):
        name = "values are" if array.ndim == 1 else "statistic is"
        raise ValueError(
            f"{name} zero at widths {at[reduced == 0].tolist()}, and zero has no "
            "logarithm: leave those out."
        )
    line: Any = stats.linregress(np.log(at), np.log(reduced))
    if array.ndim == 1:
        half = stats.t.ppf((1 + confidence) / 2, len(at) - 2) * line.stderr
        interval = (line.slope - half, line.slope + half)
    else:
        interval = _bootstrapped(np.log(at), array, statistic, confidence)
    return Exponent(
        float(line.slope),
        (float(interval[0]), float(interval[1])),
        float(np.exp(line.intercept)),
        float(line.rvalue**2),
    )


def _as_floats(argument: str, value: Any) -> np.ndarray:
    """`value` in double precision."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged sequence
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu":
        raise ValueError(
            f"{argument} must be an array of real numbers; got {type(value).__name__} "
            f"of dtype {array.dtype}."
        )
    return array.astype(float)


def _reduced(statistic: Callable[..., Any], values: np.ndarray) -> np.ndarray:
    """The statistic of each row, checked to be finite."""
    require_callable("statistic", statistic, "such as numpy.mean")
    try:
        reduced = np.asarray(statistic(values, axis=-1))
    except Exception as error:
        raise ValueError(
            "statistic must be a function statistic(values, axis=-1), such as "
            f"numpy.mean; it failed: {error}"
        ) from error
    real = reduced.dtype.kind in "fiu"
    if (
        reduced.shape != values.shape[:1]
        or not real
        or not np.all(np.isfinite(reduced))
    ):
        raise ValueError(
            f"statistic must return {len(values)} finite real numbers, one for each "
            f"width; got {reduced!r}."
        )
    return reduced.astype(float)


def _bootstrapped(
    logs: np.ndarray, values: np.ndarray, statistic: Callable[..., Any], level: float
) -> tuple[float, float]:
    if values.shape[1] < 2:
        raise ValueError(
            "values have one initialization for each width, which is too few for an "
            "interval: measure more, or give shape (W,)."
        )
    from scipy import stats

    centered = logs - logs.mean()

    def slope(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        sizes = np.stack([np.abs(statistic(s, axis=axis)) for s in samples], axis=-1)
        return np.log(sizes) @ centered / (centered @ centered)

    results = stats.bootstrap(
        tuple(values),
        slope,
        n_resamples=_RESAMPLES,
        batch=100,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = results.confidence_interval
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(
            "statistic is 0, or not finite, in some resamples of the initializations, "
            "so there is no interval: measure more, or use another statistic."
        )
    return low, high
