"""The command line: `python -m nth`."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure

import nth
from nth.__main__ import cli, main, times_until

TINY = ["--width=8", "--depth=1", "--train=4", "--test=3", "--until=1", "--order=2"]


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """The command sets JAX's precision for the whole process: put it back."""
    before = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure, which takes seconds: one test looks at it."""
    monkeypatch.setattr(Figure, "savefig", lambda *arguments: None)


def run(output: Path, *arguments: Any) -> Result:
    """The command in this process, tiny unless `arguments` say otherwise."""
    words = [*TINY, "--output", str(output), *map(str, arguments)]
    return CliRunner().invoke(main, words, catch_exceptions=False)


def save(path: Path, **arrays: Any) -> Path:
    """An npz file of 8 x 8 images with labels ±1: four to train on, three to test."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 8, 8)) / 8
    y = np.array([1, -1, 1, -1, 1, -1, 1])
    good = {"x_train": x[:4], "y_train": y[:4], "x_test": x[4:], "y_test": y[4:]}
    arrays = {k: v for k, v in {**good, **arrays}.items() if v is not None}
    file = path / "data.npz"
    np.savez(file, **arrays)
    return file


def test_digits(tmp_path: Path) -> None:
    result = run(tmp_path / "new" / "folder", "--order", "2,3")
    assert result.exit_code == 0
    out = result.stdout
    assert "4 training and 3 test points; tanh network, width 8, depth 1" in out
    for words in ("odd against even", "float64", "true loss", "p = 2", "p = 3"):
        assert words in out
    folder = tmp_path / "new" / "folder"
    assert str(folder / "levels.png") in out
    assert (folder / "levels.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = (folder / "levels.txt").read_text()
    assert "p = 3" in table
    assert table in out


def test_data(tmp_path: Path, undrawn: None) -> None:
    """Images become vectors; what is printed is what `nth.compare` finds."""
    file = save(tmp_path)
    result = run(tmp_path, "--data", file, "--seed", 5)
    with np.load(file) as arrays:
        x_train, x_test = (arrays[k].reshape(-1, 64) for k in ("x_train", "x_test"))
        y_train, y_test = (arrays[k].astype(float) for k in ("y_train", "y_test"))
    problem = nth.Problem(x_train, y_train, x_test)
    network = nth.MLP(64, 8, 1, key=jax.random.key(5))
    expected = nth.compare(network, problem, times_until(1.0), (2,), y_test=y_test)
    assert result.exit_code == 0
    assert str(expected) in result.stdout
    assert "data.npz: 4 training and 3 test points" in result.stdout
    assert "test accuracy at t = 1: truth" in result.stdout


def test_no_test_points(tmp_path: Path, undrawn: None) -> None:
    """In float32, with vector targets, and nothing to test on."""
    file = save(tmp_path, y_train=np.eye(2)[[0, 1, 0, 1]], x_test=None, y_test=None)
    result = run(tmp_path, "--data", file, "--dtype=float32", "--times=0.5,1")
    assert result.exit_code == 0
    assert "4 training and 0 test points; tanh network" in result.stdout
    assert "seed 0, float32" in result.stdout
    assert "train accuracy at t = 1: truth" in result.stdout
    assert "test accuracy" not in result.stdout
    assert not jax.config.read("jax_enable_x64")


def test_help() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert len(main.params) > 10
    for option in main.params:
        assert all(name in result.stdout for name in option.opts)
        assert getattr(option, "help", None)


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"nth, version {nth.__version__}\n"


def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> str:
    """The one line that wrong `arguments` get on stderr, the status being 2."""
    monkeypatch.setattr(sys, "argv", ["nth", *TINY, *map(str, arguments)])
    assert cli() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nth: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--widht 3", "--widht"),
        ("--width", "--width"),
        ("--width abc", "'abc' is not a valid integer"),
        ("--width 0", "width must be at least 1; got 0"),
        ("--depth 0", "depth must be at least 1; got 0"),
        ("stray", "unexpected extra argument (stray)"),
        ("--order 2,x", "'--order': '2,x' is not a comma-separated list"),
        ("--order 2.5", "'--order': '2.5'"),
        ("--order 1", "must be at least 2; got 1"),
        ("--order 2,2", "must be distinct; got (2, 2)"),
        ("--until -1", "--until must be finite and above 0; got -1"),
        ("--until 0", "--until must be finite and above 0; got 0"),
        ("--until nan", "--until must be finite and above 0; got nan"),
        ("--times 3,2", "ts must be increasing"),
        ("--times 1,nan", "ts must be finite"),
        ("--times 1;2", "'--times': '1;2' is not a comma-separated list"),
        ("--activation tahn", "Did you mean 'tanh'?"),
        ("--train 5000", "--train and --test ask for 5003 digits of 1797"),
        ("--seed -1", "'--seed': -1 is not in the range"),
        ("--train 0", "'--train': 0 is not in the range"),
        ("--test -1", "'--test': -1 is not in the range"),
        ("--dtype float16", "'--dtype': 'float16' is not one of"),
        ("--data nowhere.npz", "'--data': File 'nowhere.npz' does not exist"),
    ],
)
def test_wrong_option(monkeypatch, capsys, arguments: str, words: str) -> None:
    assert words in refuse(monkeypatch, capsys, *arguments.split())


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": None}, "data.npz has no array x_train"),
        ({"y_train": None}, "data.npz has no array y_train"),
        ({"x_train": np.full((4, 8, 8), np.nan)}, "x_train has NaN"),
        ({"y_train": [1, -1, np.inf, 1]}, "y_train has NaN"),
        ({"x_train": np.full((4, 8, 8), "a")}, "x_train must hold real numbers"),
        ({"y_train": [1j, 1, 1, 1]}, "y_train must hold real numbers; got complex"),
        ({"y_train": [1.0, -1.0]}, "y_train has shape (2,)"),
        ({"x_test": np.ones((2, 5))}, "x_test has inputs of shape (5,)"),
        ({"x_train": 1.0}, "x_train must have shape (points, *in)"),
        ({"y_test": [1.0]}, "y_test has shape (1,)"),
    ],
)
def test_wrong_data(
    monkeypatch, capsys, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    file = save(tmp_path, **arrays)
    assert words in refuse(monkeypatch, capsys, "--data", file)


@pytest.mark.parametrize("content", [b"", b"no npz at all"])
def test_wrong_file(monkeypatch, capsys, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(content)
    line = refuse(monkeypatch, capsys, "--data", file)
    assert f"cannot read {file} as npz" in line


def test_damaged_and_single_arrays(monkeypatch, capsys, tmp_path: Path) -> None:
    whole = save(tmp_path).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:200] + b"?" * 9 + whole[209:]):
        file = tmp_path / "damaged.npz"
        file.write_bytes(content)
        assert "cannot read" in refuse(monkeypatch, capsys, "--data", file)
    np.save(tmp_path / "one.npy", np.ones(3))
    line = refuse(monkeypatch, capsys, "--data", tmp_path / "one.npy")
    assert "np.savez writes" in line


def test_solve_that_fails(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(nth, "compare", partial(nth.compare, max_steps=3))
    monkeypatch.setattr(sys, "argv", ["nth", *TINY, "--output", str(tmp_path)])
    assert cli() == 1
    line = capsys.readouterr().err
    assert line.startswith("nth: the solve of the network failed at t = ")
    assert line.count("\n") == 1


def test_pickles_stay_shut(monkeypatch, capsys, tmp_path: Path) -> None:
    file = save(tmp_path, x_train=np.array([object()] * 4, dtype=object))
    assert "cannot read" in refuse(monkeypatch, capsys, "--data", file)


def test_exit_status(tmp_path: Path) -> None:
    """As the shell sees it."""
    command = [sys.executable, "-m", "nth", "--width", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "nth: width must be at least 1; got 0.\n"
    assert list(tmp_path.iterdir()) == []
