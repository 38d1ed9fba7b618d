"""`python -m nth`: the levels of the hierarchy beside the network really trained.

Handwritten digits unless `--data` names the user's own; prints the table of
[`nth.compare`][] and writes its figure.
"""

import math
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

try:
    import click
except ImportError:
    sys.exit(
        "nth: the command line needs click: "
        "pip install 'neural-tangent-hierarchy[examples]'"
    )

import nth

from ._activation import ACTIVATIONS
from ._problem import Problem

# Renard's series R10: ten times to a decade, in round numbers.
_DECADE = (1.0, 1.25, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class _Numbers(click.ParamType):
    """A comma-separated list of numbers."""

    name = "numbers"

    def __init__(self, kind: type):
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers")


def digits(n_train: int, n_test: int, seed: int) -> dict[str, np.ndarray]:
    """Scikit-learn's handwritten digits, of unit norm: odd is +1 and even is −1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise click.ClickException(
            "the digits need scikit-learn: "
            "pip install 'neural-tangent-hierarchy[examples]', or give --data"
        ) from None
    images, numbers = load_digits(return_X_y=True)
    if n_train + n_test > len(images):
        raise click.ClickException(
            f"--train and --test ask for {n_train + n_test} digits of {len(images)}"
        )
    chosen = np.random.default_rng(seed).permutation(len(images))[: n_train + n_test]
    x = images[chosen] / np.linalg.norm(images[chosen], axis=1, keepdims=True)
    y = np.where(numbers[chosen] % 2, 1.0, -1.0)
    train, test = slice(n_train), slice(n_train, None)
    arrays = (x[train], y[train], x[test], y[test])
    return dict(zip(_ARRAYS, arrays, strict=True))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file: `x_train`, `y_train`, maybe `x_test`, `y_test`."""
    try:
        with zipfile.ZipFile(path):  # an npz file is a zip file of arrays
            file = np.load(path, allow_pickle=False)
        arrays = {name: file[name] for name in _ARRAYS if name in file}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise click.ClickException(
            f"cannot read {path} as npz, which np.savez writes: {error}"
        ) from None
    missing = [name for name in _ARRAYS[:2] if name not in arrays]
    if missing:
        raise click.ClickException(f"{path} has no array {' and no '.join(missing)}")
    return arrays


def as_problem(
    arrays: dict[str, np.ndarray], dtype: str
) -> tuple[Problem, np.ndarray | None]:
    """The problem, each input as a vector, and the test targets if there are any."""
    cast = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold real numbers; got {array.dtype}.")
        cast[name] = array.astype(dtype)
        if name.startswith("x"):
            if array.ndim < 2:
                raise ValueError(
                    f"{name} must have shape (points, *in); got {array.shape}."
                )
            cast[name] = cast[name].reshape(len(array), math.prod(array.shape[1:]))
    problem = Problem(cast["x_train"], cast["y_train"], cast.get("x_test"))
    return problem, cast.get("y_test")


def times_until(last: float) -> np.ndarray:
    """0, and round times at even ratios over the three decades up to `last`."""
    decade = np.floor(np.log10(last))
    powers = 10.0 ** np.arange(decade - 3, decade + 1)
    grid = np.outer(powers, _DECADE).ravel()
    grid = grid[(grid >= last / 2000) & (grid < last * (1 - 1e-9))]
    return np.array([0.0, *grid, last])


@click.command(context_settings={"show_default": True})
@click.option(
    "--order",
    type=_Numbers(int),
    default="2,3,4",
    help="Levels p, separated by commas.",
)
@click.option("--width", type=int, default=256, help="Neurons in each hidden layer.")
@click.option("--depth", type=int, default=2, help="Hidden layers.")
@click.option("--activation", default="tanh", help=f"One of {', '.join(ACTIVATIONS)}.")
@click.option("--train", type=click.IntRange(1), default=24, help="Training digits.")
@click.option("--test", type=click.IntRange(0), default=24, help="Test digits.")
@click.option("--until", type=float, default=150.0, help="Last time.")
@click.option(
    "--times",
    type=_Numbers(float),
    help="Times, separated by commas, in place of --until.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    help="Of the network and of the digits.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    help="Of the data, the network and the solve.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="nth-output",
    help="Folder for the figure and the table.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="Your own x_train (n, d), y_train (n,) and, if you like, x_test, y_test, "
    "in place of the digits.",
)
@click.version_option(nth.__version__, prog_name="nth")
def main(**options: Any) -> None:
    """Compare levels of the truncated Neural Tangent Hierarchy with a trained network.

    A fully connected network is trained by gradient flow on handwritten digits, odd
    against even, or on --data; the level-p hierarchy predicts its outputs from the
    initialisation alone. Prints root-mean-square errors over time and writes a figure.
    """
    run(**options)


def run(
    *,
    order: tuple[int, ...],
    width: int,
    depth: int,
    activation: str,
    train: int,
    test: int,
    until: float,
    times: tuple[float, ...] | None,
    seed: int,
    dtype: str,
    output: Path,
    data: Path | None,
) -> None:
    """The main job, of checked options."""
    start = time.perf_counter()
    jax.config.update("jax_enable_x64", dtype == "float64")
    if times is None and not (np.isfinite(until) and until > 0):
        raise click.ClickException(f"--until must be finite and above 0; got {until}")
    arrays = read(data) if data else digits(train, test, seed)
    problem, y_test = as_problem(arrays, dtype)
    out_size = problem.y_train.shape[1] if problem.y_train.ndim == 2 else "scalar"
    how: Any = {"activation": activation, "key": jax.random.key(seed)}
    network = nth.MLP(problem.x_train.shape[1], width, depth, out_size=out_size, **how)
    ts = times_until(until) if times is None else np.array(times)
    output.mkdir(parents=True, exist_ok=True)
    comparison = nth.compare(network, problem, ts, order, y_test=y_test)
    what = data.name if data else "handwritten digits, odd against even"
    click.echo(
        f"{what}: {problem.n_train} training and {problem.n_test} test points; "
        f"{activation} network, width {width}, depth {depth}, seed {seed}, {dtype}\n"
    )
    click.echo(f"{comparison}\n")
    (output / "levels.txt").write_text(f"{comparison}\n")
    comparison.plot().savefig(output / "levels.png")
    seconds = time.perf_counter() - start
    click.echo(f"Wrote {output / 'levels.png'} and levels.txt, in {seconds:.0f} s.")


def cli() -> int:
    """Run `main`; a wrong option or file gets one line and exit status 2, a solve that
    fails one line and 1."""
    try:
        return main.main(prog_name="python -m nth", standalone_mode=False) or 0
    except click.ClickException as error:
        message = error.format_message()
    except (ValueError, OSError) as error:
        message = str(error)
    except click.Abort:
        return 130
    except RuntimeError as error:
        return _say(str(error).partition(" Pass throw=False")[0], 1)
    return _say(message, 2)


def _say(message: str, status: int) -> int:
    print(f"nth: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(cli())
