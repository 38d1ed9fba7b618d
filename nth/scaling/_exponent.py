"""Exponents of power laws in the width, with confidence intervals."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import numpy as np

from .._internal.validation import (
    require_callable,
    require_concrete,
    require_positive,
)

# Bootstrap resamples for a confidence interval.
_RESAMPLES = 2000


class Exponent(eqx.Module):
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

    def __repr__(self) -> str:
        return f"Exponent({self}, prefactor {self.prefactor:.3g}, r2 {self.r2:.3f})"


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
    at, array = _checked(widths, values)
    if require_positive("confidence", confidence) >= 1:
        raise ValueError(f"confidence must be below 1; got {confidence}.")
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


def _checked(widths: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both in double precision, finite and of matching shapes."""
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
    if not np.all(np.isfinite(array)):
        rows = np.flatnonzero(~np.isfinite(array.reshape(len(at), -1)).all(axis=1))
        raise ValueError(
            f"values are NaN or infinite at widths {at[rows].tolist()}: leave those "
            "out, or find out why the measure failed."
        )
    return at, array


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

    result = stats.bootstrap(
        tuple(values),
        slope,
        n_resamples=_RESAMPLES,
        batch=100,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(
            "statistic is 0, or not finite, in some resamples of the initializations, "
            "so there is no interval: measure more, or use another statistic."
        )
    return low, high
