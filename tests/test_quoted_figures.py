"""README and documentation quote the stored results of benchmarks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STORED: dict[str, Any] = json.loads((ROOT / "docs" / "benchmarks.json").read_text())

# A phrase of a page with {} for each figure, and where the figures are stored.
_SCIPY = "time / DenseExponential"
_STIFF = "level-3 hierarchy, n = 512, LowRankRosenbrock to 10000, rtol 1e-05"
_TOLERANCES = [
    ("tolerances", f"n = 256, width 512, t = 10, p = {p}, rtol {rtol}", "evaluations")
    for rtols in (("1e-04", "1e-04", "1e-06"), ("1e-07", "1e-07", "1e-07"))
    for p, rtol in zip((2, 3, 4), rtols, strict=True)
]
QUOTES = [
    (
        "accuracy.md",
        "at level 2, {} % of these runs are silent and wrong",
        [("error_estimate", "matrix-free, p = 2", "silent and wrong by half (%)")],
    ),
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
    *(
        (
            "discrete.md",
            phrase,
            [
                ("optimizers", f"10-dimensional inputs, {name}", f"norm of u{k}")
                for k in (1, 2, 3)
            ],
        )
        for name, phrase in {
            "sgd(0.5)": "they are {}, {} and {} in norm",
            "adam(2e-3)": "default `eps` they are {}, {} and {}, and",
            "adam(2e-3, eps_root=1e-6)": "it converges, {}, {} and {}, and",
        }.items()
    ),
    *(
        (
            "kernels.md",
            f"| {row} | {{}} ({{}}) | {{}} ({{}}) |",
            [
                ("against_neural_tangents", f"{case}, {dtype}", f"{side} / nth")
                for dtype in ("float64", "float32")
                for side in ("plain JAX", "neural-tangents")
            ],
        )
        for row, case in {
            "2 convolutions, $n = 64$": "convolutional, n = 64, 1 output",
            "2 convolutions, $n = 128$": "convolutional, n = 128, 1 output",
            "attention (4 heads, 16 tokens, width 32), $n = 32$": (
                "attention, n = 32, 1 output"
            ),
            "the same, 10 outputs": "attention, n = 32, 10 outputs",
            "residual with normalization, width 512, $n = 128$": (
                "residual, n = 128, 1 output"
            ),
            "dense, 2 layers of width 512, $n = 128$": "dense, n = 128, 1 output",
        }.items()
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
        significant = quoted if "." in quoted else quoted.rstrip("0")
        digits = len(significant.replace(".", "").lstrip("0"))
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
