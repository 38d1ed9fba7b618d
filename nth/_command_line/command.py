"""`python -m nth`: levels of the hierarchy compared with the trained network.

The data are handwritten digits, or the user's own with `--data`. JAX is imported after
the options are checked, so that `--help` and `--version` are fast.
"""

import math
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

try:
    import click
except ImportError:
    sys.exit(
        "nth: the command line needs click: "
        "pip install 'neural-tangent-hierarchy[examples]'"
    )

import nth

from .dataset import LOSSES
from .output import FORMATS
from .run import Options, run

# The activations of nth.MLP, listed without importing JAX; a test compares them.
_ACTIVATIONS = ("tanh", "erf", "relu", "gelu", "sigmoid", "softplus", "sin", "linear")
# Each further level takes about 5 s more to compile.
_HIGHEST_ORDER = 10


class _Numbers(click.ParamType):
    """A comma-separated list of numbers."""

    name = "numbers"

    def __init__(self, kind: type):
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers", param)
        return numbers


def _check_orders(ctx: Any, param: Any, orders: tuple[int, ...]) -> tuple[int, ...]:
    for p in orders:
        if not 2 <= p <= _HIGHEST_ORDER:
            raise click.BadParameter(
                f"levels must be at least 2, and on the command line at most "
                f"{_HIGHEST_ORDER}; got {p}"
            )
    if len(set(orders)) < len(orders):
        raise click.BadParameter(f"levels must be distinct; got {orders}")
    return orders


def _check_times(
    ctx: Any, param: Any, times: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    if times is not None:
        if not all(math.isfinite(t) and t >= 0 for t in times):
            raise click.BadParameter(
                f"times must be finite and at least 0; got {times}"
            )
        if any(b <= a for a, b in pairwise(times)):
            raise click.BadParameter(f"times must be increasing; got {times}")
    return times


def _check_until(ctx: Any, param: Any, until: float) -> float:
    if not (math.isfinite(until) and until > 0):
        raise click.BadParameter(f"must be finite and above 0; got {until}")
    return until


@click.command(context_settings={"show_default": True})
@click.option(
    "--order",
    type=_Numbers(int),
    callback=_check_orders,
    default="2,3,4",
    help="Levels p, separated by commas.",
)
@click.option(
    "--width",
    type=click.IntRange(1, 1_000_000),
    default=256,
    help="Neurons in each hidden layer.",
)
@click.option("--depth", type=click.IntRange(1, 100), default=2, help="Hidden layers.")
@click.option(
    "--activation",
    type=click.Choice(_ACTIVATIONS),
    metavar="NAME",
    default="tanh",
    help=f"One of {', '.join(_ACTIVATIONS)}.",
)
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    help="By default squared-error, and cross-entropy if y_train holds integer labels "
    "of more than two classes.",
)
@click.option("--train", type=click.IntRange(1), default=24, help="Training digits.")
@click.option("--test", type=click.IntRange(0), default=24, help="Test digits.")
@click.option(
    "--until", type=float, callback=_check_until, default=150.0, help="Last time."
)
@click.option(
    "--times",
    type=_Numbers(float),
    callback=_check_times,
    help="Times, separated by commas, in place of --until.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),  # JAX drops higher bits if x64 is off
    default=0,
    help="Seed of the network and of the digits.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    help="Precision of the data, the network and the solve.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="nth-output",
    help="Folder for the figure and the table.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    metavar="NAME",
    multiple=True,
    help="Also write tables of errors and outputs, as csv, json or parquet; may be "
    "repeated.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="Your own x_train (n, d), y_train (n,) and optionally x_test, y_test, in "
    "place of the digits. Integers in y_train are class labels, floats are numbers.",
)
@click.option(
    "--normalize", is_flag=True, help="Scale each input of --data to unit norm."
)
@click.version_option(nth.__version__, prog_name="nth")
def main(**options: Any) -> None:
    """Compare levels of the truncated Neural Tangent Hierarchy with a trained network.

    A fully connected network is trained by gradient flow on handwritten digits, odd
    against even, or on --data; the level-p hierarchy predicts its outputs from the
    initialization alone. Prints root-mean-square errors over time and writes a figure.
    """
    run(Options(**options))


def cli() -> int:
    """Run `main`; a wrong option or file gets one line and exit status 2, a solve that
    fails one line and 1."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
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


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}", 0)


def _say(message: str, status: int) -> int:
    print(f"nth: {' '.join(message.split())}", file=sys.stderr)
    return status
