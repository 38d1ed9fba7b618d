"""The benchmarks that README and documentation quote, as a table and as JSON.

    python -m benchmarks                      # all: several hours on 2 cores
    python -m benchmarks levels kernels       # some
    python -m benchmarks --small              # small sizes, to check that they run

Each runs in a process of its own. Its rows are printed with the machine and the
versions, and replace its entry of the file of results; other entries are kept.
`docs/benchmarks.json` is the file that the documentation shows.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from .record import measured

BENCHMARKS = (
    "levels",
    "kernels",
    "third_kernels",
    "against_neural_tangents",
    "infinite_against_neural_tangents",
    "matrix_free",
    "cheaper_method",
    "stiff_dense",
    "stiff_matrix_free",
    "tolerances",
    "discrete",
    "optimizers",
    "digits",
    "restarts",
    "error_estimate",
    "stress",
    "corrections",
    "corrections_given_layer",
    "devices",
)


@click.command(help=__doc__, context_settings={"max_content_width": 88})
@click.argument("names", nargs=-1, type=click.Choice(BENCHMARKS), metavar="[NAME]...")
@click.option("--small", is_flag=True, help="Small sizes.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="benchmarks.json",
    show_default=True,
    help="The file of results.",
)
@click.option("--list", "listed", is_flag=True, help="Print the names.")
def main(names: Sequence[str], small: bool, output: Path, listed: bool) -> None:
    if listed:
        click.echo("\n".join(BENCHMARKS))
        return
    records = json.loads(output.read_text()) if output.exists() else {}
    failed = []
    for name in names or BENCHMARKS:
        click.echo(f"{name} ...", err=True)
        try:
            records[name] = _in_own_process(name, small)
        except Exception as error:  # the others can still run
            click.echo(f"{name} failed: {error}", err=True)
            failed.append(name)
            continue
        output.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
        click.echo(text(name, records[name]))
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def _in_own_process(name: str, small: bool) -> dict[str, Any]:
    """Peak memory, x64 and environment variables are those of one benchmark alone."""
    # SciPy's solvers of small systems are not faster with threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(measured, name, small).result()


def text(name: str, record: dict[str, Any]) -> str:
    """The title, the table, the machine and the versions of a record."""
    machine, versions = record["machine"], record["versions"]
    return "\n".join(
        [
            f"\n{name}: {record['title']}",
            tabulate(record["rows"], headers="keys", floatfmt=".3g"),
            f"{machine['processor']}, {machine['cores']} cores, {machine['device']}; "
            + ", ".join(f"{package} {number}" for package, number in versions.items()),
            f"{record['date']}, {record['seconds']} s"
            + (", small sizes" if record["small"] else ""),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
