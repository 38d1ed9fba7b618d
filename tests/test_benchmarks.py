"""The command of the benchmarks, and their stored results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command, record

ROOT = Path(__file__).parents[1]
STORED: dict[str, Any] = json.loads((ROOT / "docs" / "benchmarks.json").read_text())


def test_a_small_run_is_printed_and_kept_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_in_own_process", record.measured)  # compiles less
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"kernels": {"rows": []}}))
    arguments = ["cheaper_method", "--small", "--output", str(output)]
    result = CliRunner().invoke(command.main, arguments, catch_exceptions=False)
    records = json.loads(output.read_text())
    assert list(records) == ["kernels", "cheaper_method"]
    stored = records["cheaper_method"]
    (row,) = stored["rows"]
    assert row["chosen / faster"] >= 1
    times = [row[f"{form}, CPU time (s)"] for form in ("dense", "matrix-free")]
    assert min(times) > 0
    assert stored["small"]
    assert stored["versions"].keys() >= {"nth", "jax", "numpy"}
    assert stored["machine"]["cores"] >= 1
    for shown in ("n = 8, p = 2", "dense, CPU time (s)", "jax 0", "small sizes"):
        assert shown in result.output


def test_a_benchmark_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(name: str, small: bool) -> Any:
        if name == "kernels":
            raise ValueError("no memory")
        return {**STORED["levels"], "small": small}

    monkeypatch.setattr(command, "_in_own_process", measured)
    output = tmp_path / "results.json"
    arguments = ["kernels", "levels", "--output", str(output)]
    result = CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 1
    assert "kernels failed: no memory" in result.output
    assert list(json.loads(output.read_text())) == ["levels"]


def test_every_benchmark_has_a_module_that_measures() -> None:
    for name in command.BENCHMARKS:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert re.search(r"^def measure\(small: bool\)", text, re.MULTILINE), name


def test_stored_results_are_of_full_sizes_and_finite() -> None:
    assert set(STORED) <= set(command.BENCHMARKS)
    for name, stored in STORED.items():
        assert not stored["small"], name
        for row in stored["rows"]:
            for value in row.values():
                assert isinstance(value, str) or abs(value) < 1e12, (name, row)
