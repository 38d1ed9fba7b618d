"""The command of the benchmarks, and what README and documentation quote from it."""

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


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_quote_the_stored_errors(page: str) -> None:
    """Factors by which level 4 is closer to the network than level 2."""
    rows = {row["case"]: row for row in STORED["levels"]["rows"]}
    text = " ".join((ROOT / page).read_text().split())
    found = re.search(r"by a factor of ([^()]*) \((training) points\)", text)
    assert found is not None
    quoted = re.findall(r"([\d.]+) at \$?t = (\d+)", found[1])
    assert len(quoted) == 3
    for factor, t in quoted:
        ratio = rows[f"digits, train, t = {t}"]["p = 2 / p = 4"]
        assert float(factor) == float(f"{ratio:.2g}")


def test_readme_quotes_the_stored_speed_of_kernels() -> None:
    assert "over a hundred times faster" in " ".join(
        (ROOT / "README.md").read_text().split()
    )
    ratios = [row.get("plain JAX / nth") for row in STORED["kernels"]["rows"]]
    assert min(ratio for ratio in ratios if ratio is not None) > 100


# A phrase of a page with {} for each figure, and where the figures are stored.
_SCIPY = "time / DenseExponential"
_STIFF = "level-3 hierarchy, n = 512, LowRankRosenbrock to 10000, rtol 1e-05"
_TOLERANCES = [
    ("tolerances", f"n = 256, width 512, t = 10, p = {p}, rtol {rtol}", "evaluations")
    for rtols in (("1e-04", "1e-04", "1e-06"), ("1e-07", "1e-07", "1e-07"))
    for p, rtol in zip((2, 3, 4), rtols, strict=True)
]
QUOTES = [
    *(
        (
            "solvers.md",
            f"| {n} digits, order {p}, to $t = {quoted}$ | {{}} | {{}} |",
            [
                ("stiff_dense", f"n = {n}, p = {p}, T = {t}: SciPy {m}, 1e-07", _SCIPY)
                for m in ("LSODA", "BDF")
            ],
        )
        for n, p, t, quoted in (
            (64, 3, 100, "100"),
            (64, 3, 100000, "10^5"),
            (256, 3, 100, "100"),
            (256, 3, 10000, "10^4"),
            (64, 4, 100, "100"),
        )
    ),
    (
        "solvers.md",
        "in {} steps and {} evaluations at rtol $10^{-5}$",
        [("stiff_matrix_free", _STIFF, name) for name in ("steps", "evaluations")],
    ),
    (
        "solvers.md",
        "`Tsit5` takes at least {} times as many evaluations",
        [("stiff_matrix_free", _STIFF, "bound of Tsit5 / evaluations")],
    ),
    (
        "solvers.md",
        "with {}, {} and {} evaluations in place of {}, {} and {}",
        _TOLERANCES,
    ),
    (
        "hierarchy.md",
        "error of level 3 is {} (training points) at $t = 150$",
        [("levels", "digits, train, t = 150", "p = 3")],
    ),
    (
        "kernels.md",
        "takes {} times as long for attention and {} times for two convolutions",
        [
            ("third_kernels", f"{name}, n = 32, float64", "plain JAX / nth")
            for name in ("attention", "convolutional")
        ],
    ),
]


@pytest.mark.parametrize(("page", "phrase", "figures"), QUOTES)
def test_pages_quote_stored_figures(
    page: str, phrase: str, figures: list[tuple[str, str, str]]
) -> None:
    text = " ".join((ROOT / "docs" / page).read_text().split())
    found = re.search(re.escape(phrase).replace(r"\{\}", r"([\d.,]+)"), text)
    assert found is not None, phrase
    for quoted, (name, case, column) in zip(found.groups(), figures, strict=True):
        rows = {row["case"]: row for row in STORED[name]["rows"]}
        digits = len(quoted.replace(".", "").lstrip("0"))
        assert float(quoted) == float(f"{rows[case][column]:.{digits}g}"), case


def test_the_page_of_finite_width_quotes_the_stored_deviations() -> None:
    text = (ROOT / "docs" / "theory" / "finite_width.md").read_text()
    rows = {row["case"]: row for row in STORED["corrections"]["rows"]}
    exponents = {
        **rows,
        **{r["case"]: r for r in STORED["corrections_given_layer"]["rows"]},
    }
    names = {"outputs": "output_cumulant", "ntk_output": "ntk_output_covariance"}
    for case, row in rows.items():
        cells = [
            f"{row[f'width {w}, rms deviation']:.1f} ({row[f'width {w}, largest']:.1f})"
            for w in (64, 128, 256)
        ]
        slope, error = (exponents[case][key] for key in ("exponent", "± (95 %)"))
        cells += [f"{slope:.2f} ± {error:.2f}".replace("-", "−")]
        assert f"| `{names.get(case, case)}` | {' | '.join(cells)} |" in text


def test_readme_quotes_the_stored_times() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "in under a minute on 2 cores" in text
    assert "in about a minute of CPU time" in text
    for name, case, most in (
        ("levels", "python -m nth", 60),
        ("digits", "the whole program", 75),
    ):
        rows = {row["case"]: row for row in STORED[name]["rows"]}
        assert rows[case]["CPU time (s)"] < most
