"""The files that the command line writes."""

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

FORMATS = ("csv", "json", "parquet")


def files(formats: Sequence[str]) -> list[str]:
    """The names of all files."""
    tables = [f"{name}.{kind}" for kind in formats for name in ("levels", "outputs")]
    return ["levels.png", "levels.txt", *tables]


def require_packages(formats: Sequence[str]) -> None:
    """Raise unless the packages that write the files are installed."""
    require_package("matplotlib", "the figure needs matplotlib")
    if formats:
        require_package("pandas", "--format needs pandas")
    if "parquet" in formats and find_spec("pyarrow") is None:
        raise click.ClickException(
            "--format parquet needs pyarrow: "
            "pip install 'neural-tangent-hierarchy[parquet]'"
        )


def require_package(package: str, message: str) -> None:
    if find_spec(package) is None:
        raise click.ClickException(
            f"{message}: pip install 'neural-tangent-hierarchy[examples]'"
        )


def check_writable(output: Path, formats: Sequence[str]) -> None:
    """Raise, before a long solve, unless the results can be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise click.ClickException(
            f"--output: cannot write into {output}: {error.strerror or error}"
        ) from None
    for name in files(formats):
        if (output / name).is_dir():
            raise click.ClickException(f"--output: {output / name} is a folder")


def write(comparison: Any, output: Path, formats: Sequence[str]) -> None:
    """The table of errors as text, the figure, and tables for other programs."""
    (output / "levels.txt").write_text(f"{comparison}\n")
    comparison.plot().savefig(output / "levels.png")
    if formats:
        _write_tables(comparison, output, formats)


def _write_tables(comparison: Any, output: Path, formats: Sequence[str]) -> None:
    """The errors of each model, and its outputs at each time and point."""
    import pandas

    from nth._compare.export import models_of

    models = models_of(comparison)
    outputs = {name: model.to_dataframe() for name, model in models.items()}
    tables = {
        "levels": comparison.to_dataframe(),
        "outputs": pandas.concat(outputs, names=["model"]).reset_index("model"),
    }
    for name, table in tables.items():
        for kind in formats:
            path = output / f"{name}.{kind}"
            if kind == "json":
                table.to_json(path, orient="records", double_precision=15)
            else:
                getattr(table, f"to_{kind}")(path, index=False)
