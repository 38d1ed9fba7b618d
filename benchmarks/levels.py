"""Errors of levels 2, 3 and 4 against the trained network.

The run of `python -m nth` (24 + 24 handwritten digits, odd against even, tanh, width
256, two hidden layers, seed 0) with its duration; the exponents of the errors as t → 0;
and errors at several widths, on 8 random points of norm 1 in 10 dimensions.
"""

import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import nth
from nth._command_line.dataset import digits

from .record import Row, durations

ORDERS = (2, 3, 4)
TIMES = (3.0, 5.0, 25.0, 30.0, 150.0)
EARLY = (0.01, 0.1)
LAST, SEEDS = 20.0, 4


def measure(small: bool) -> list[Row]:
    widths = (8,) if small else (32, 64, 128, 256)
    return [
        *_digits(16 if small else 256, 6 if small else 24),
        *(_at_width(width) for width in widths),
        _command(small),
    ]


def _digits(width: int, n: int) -> list[Row]:
    """Errors at several times, and their exponents at early ones."""
    data = digits(n, n, 0)
    problem = nth.Problem(data["x_train"], data["y_train"], data["x_test"])
    network = nth.MLP(64, width, 2, key=jax.random.key(0))
    comparison = nth.compare(network, problem, [*EARLY, *TIMES], ORDERS, progress=False)
    rows = []
    for points in ("train", "test"):
        errors = {p: np.asarray(comparison.error(p, points)) for p in ORDERS}
        for i, t in enumerate(TIMES, start=len(EARLY)):
            case = f"digits, {points}, t = {t:g}"
            loss = {"network loss": float(comparison.truth.loss[i])}
            at = {p: error[i] for p, error in errors.items()}
            rows.append({"case": case, **loss, **_errors(at)})
        exponents = {
            f"p = {p}": float(np.log(e[1] / e[0]) / np.log(EARLY[1] / EARLY[0]))
            for p, e in errors.items()
        }
        rows.append({"case": f"digits, {points}, exponent of t → 0", **exponents})
    return rows


def _errors(errors: dict[int, float]) -> dict[str, float]:
    ratios = {f"p = 2 / p = {p}": float(errors[2] / errors[p]) for p in (3, 4)}
    return {**{f"p = {p}": float(e) for p, e in errors.items()}, **ratios}


def _at_width(width: int) -> Row:
    """Medians over initializations of the errors at one time."""
    errors: dict[int, list[float]] = {p: [] for p in ORDERS}
    for seed in range(SEEDS):
        x_key, y_key, key = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(x_key, (8, 10))
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        problem = nth.Problem(x, jax.random.normal(y_key, (8,)))
        network = nth.MLP(10, width, 2, key=key)
        found = nth.compare(network, problem, [LAST], ORDERS, progress=False)
        for p in ORDERS:
            errors[p].append(float(found.error(p, "train")[0]))
    medians = {p: float(np.median(values)) for p, values in errors.items()}
    return {"case": f"8 points, t = {LAST:g}, width {width}", **_errors(medians)}


def _command(small: bool) -> Row:
    """`python -m nth`, imports and compilation included."""
    sizes = "--order 2,3 --width 16 --train 6 --test 4 --until 5" if small else ""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nth", "--output", folder, *sizes.split()]
        return {"case": "python -m nth", **durations(command, folder)[0]}
