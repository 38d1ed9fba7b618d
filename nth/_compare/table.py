"""The table of a comparison."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from .._internal.validation import require_concrete

if TYPE_CHECKING:
    from .comparison import Comparison, Points

# A level is trusted while its estimated error is below this share of the change.
_TRUSTED = 0.1

_SYMBOL = {"time": "t", "step": "step"}


def _rows(ts: np.ndarray, most: int = 9) -> list[int]:
    """Indices of the times in a table: all, or `most`, log-spaced, with the last."""
    ts = ts.astype(np.float64)  # integer zeros could not be clipped to 1e-300
    if len(ts) <= most:
        return list(range(len(ts)))
    positive = ts[ts > 0]
    spaced = np.geomspace(max(positive[0], ts[-1] / 1e3), ts[-1], most)
    return sorted({int(np.argmin(np.abs(np.log(ts.clip(1e-300) / t)))) for t in spaced})


def name_of(order: int | str, equals: str = " = ") -> str:
    """The name of a level, such as `p = 2`, or of another model."""
    return order if isinstance(order, str) else f"p{equals}{order}"


def _at(comparison: "Comparison", t: Any) -> str:
    """A time, such as `t = 0.25`, or a step, such as `step 12`."""
    sign = "t = " if comparison.clock == "time" else "step "
    return f"{sign}{float(t):.4g}"


def table(comparison: "Comparison") -> str:
    """Errors and estimates at a few times, then window exits, trust and accuracies."""
    require_concrete("comparison", (comparison, jnp.zeros(())), "a table")
    orders = list(comparison.every)
    kinds: list["Points"] = ["train"]
    if comparison.problem.n_test:
        kinds.append("test")
    ts = np.asarray(comparison.ts)
    columns: dict[str, Any] = {
        _SYMBOL[comparison.clock]: ts,
        "network loss": np.asarray(comparison.truth.loss),
    }
    for kind in kinds:
        for p in orders:
            columns[f"{kind}\n{name_of(p)}"] = np.asarray(comparison.error(p, kind))
    for p in orders:
        estimate = np.asarray(comparison.error_estimate(p))
        if np.any(np.isfinite(estimate)):
            columns[f"estimate\n{name_of(p)}"] = estimate
    rows = [[column[i] for column in columns.values()] for i in _rows(ts)]
    formats = (".4g", ".3g", *[".1e"] * (len(columns) - 2))
    lines = [
        "Root-mean-square error of the outputs against the trained network",
        "",
        tabulate(rows, headers=list(columns), floatfmt=formats, missingval=""),
        *_window_lines(comparison),
        *_trust_lines(comparison),
        *_accuracy_lines(comparison, kinds),
    ]
    return "\n".join(lines)


def _window_lines(comparison: "Comparison") -> list[str]:
    return [
        f"{name_of(p)} left its window at {_at(comparison, until)}."
        for p, until in ((p, comparison.valid_until(p)) for p in comparison.every)
        if np.isfinite(until)
    ]


def _trust_lines(comparison: "Comparison") -> list[str]:
    """Until when each level is trusted, by its own estimate of its error."""
    lines = []
    for p in comparison.every:
        until = comparison.trusted_until(p, _TRUSTED)
        at = _at(comparison, until) if np.isfinite(until) else "the last time"
        if not np.isnan(until):
            lines.append(f"{name_of(p)} is trusted until {at}.")
    if lines:
        share = f"{_TRUSTED:.0%} of the predicted change"
        lines.append(f"(Trusted: the estimated error is below {share}.)")
    return lines


def _accuracy_lines(comparison: "Comparison", kinds: Sequence["Points"]) -> list[str]:
    lines = []
    for kind in kinds:
        shares = {"trained network": comparison.accuracy("truth", kind)}
        for p in comparison.every:
            shares[name_of(p)] = comparison.accuracy(p, kind)
        known = [
            f"{name} {100 * s[-1]:.1f} %" for name, s in shares.items() if s is not None
        ]
        if known:
            last = _at(comparison, comparison.ts[-1])
            lines.append(f"{kind} accuracy at {last}: " + ", ".join(known))
    return ["", *lines] if lines else []
