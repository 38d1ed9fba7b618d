"""What `python -m nth` does with its options: a comparison, its table and its files.

JAX is imported after the data are read.
"""

import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

import nth

from .dataset import Targets, as_inputs, as_targets, digits, read
from .output import check_writable, files, require_package, require_packages, write

# Renard's series R10: ten times to a decade, in round numbers.
_DECADE = (1.0, 1.25, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


class Options(NamedTuple):
    """The options of the command, which click has checked."""

    order: tuple[int, ...]
    width: int
    depth: int
    activation: str
    loss: str | None
    train: int
    test: int
    until: float
    times: tuple[float, ...] | None
    seed: int
    dtype: str
    output: Path
    formats: tuple[str, ...]
    data: Path | None
    normalize: bool


def run(options: Options) -> None:
    """Compare the levels, print the table and write the files."""
    start = time.perf_counter()
    require_packages(options.formats)
    arrays = _arrays(options)
    x_train, x_test = as_inputs(arrays, options.dtype, options.normalize)
    targets = as_targets(arrays, options.loss, options.dtype)
    ts = _as_times(options.until, options.times, options.dtype)
    check_writable(options.output, options.formats)

    import jax

    jax.config.update("jax_enable_x64", options.dtype == "float64")
    problem = nth.Problem(x_train, targets.train, x_test, loss=_loss(targets))
    network = nth.MLP(
        x_train.shape[1],
        options.width,
        options.depth,
        out_size=targets.out_size,
        activation=options.activation,
        key=jax.random.key(options.seed),
    )
    click.echo(_description(options, problem, targets))
    comparison = nth.compare(network, problem, ts, options.order, y_test=targets.test)
    click.echo(f"{comparison}\n")
    write(comparison, options.output, options.formats)
    *names, last = files(options.formats)
    listed = f"{', '.join(names)} and {last}"
    seconds = time.perf_counter() - start
    click.echo(f"Wrote {options.output / listed}, in {seconds:.0f} s.")


def _arrays(options: Options) -> dict[str, np.ndarray]:
    if options.data is not None:
        return read(options.data)
    require_package("sklearn", "the digits need scikit-learn; or give --data")
    return digits(options.train, options.test, options.seed)


def _loss(targets: Targets) -> "nth.AbstractLoss":
    return {
        "squared-error": nth.SquaredError,
        "cross-entropy": nth.SoftmaxCrossEntropy,
        "logistic": nth.LogisticLoss,
    }[targets.loss]()


def _description(options: Options, problem: "nth.Problem", targets: Targets) -> str:
    """What is compared, above the table."""
    data = options.data
    name = data.name if data else "handwritten digits, odd against even"
    return (
        f"{name}: {problem.n_train} training and {problem.n_test} test points; "
        f"{options.activation} network, width {options.width}, depth {options.depth}, "
        f"seed {options.seed}, {options.dtype}\n{targets.description}\n"
    )


def _as_times(until: float, times: tuple[float, ...] | None, dtype: str) -> np.ndarray:
    ts = times_until(until) if times is None else np.array(times)
    with np.errstate(over="ignore"):
        rounded = ts.astype(dtype)
    if not (np.all(np.isfinite(rounded)) and np.all(np.diff(rounded) > 0)):
        option = f"--until {until:g}" if times is None else "--times"
        raise click.ClickException(
            f"{option}: times must be finite and increasing when rounded to {dtype}"
        )
    return ts


def times_until(last: float) -> np.ndarray:
    """0, and round times at even ratios over the three decades up to `last`."""
    decade = np.floor(np.log10(last))
    powers = 10.0 ** np.arange(decade - 3, decade + 1)
    grid = np.outer(powers, _DECADE).ravel()
    grid = grid[(grid >= last / 2000) & (grid < last * (1 - 1e-9))]
    return np.array([0.0, *grid, last])
