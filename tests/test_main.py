"""The command line: `python -m nth`."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure

import nth
from nth._command_line import command
from nth._command_line.command import cli, main
from nth._command_line.run import times_until
from nth._network.activations import ACTIVATIONS

TINY = ["--width=8", "--depth=1", "--train=4", "--test=3", "--until=1", "--order=2"]


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """Restore JAX's precision, which the command sets for the whole process."""
    before = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the figure, which takes seconds and has a separate test."""
    monkeypatch.setattr(Figure, "savefig", lambda *arguments: None)


def run(output: Path, *arguments: Any) -> Result:
    """The command in this process, with tiny sizes unless `arguments` set them."""
    message = [*TINY, "--output", str(output), *map(str, arguments)]
    return CliRunner().invoke(main, message, catch_exceptions=False)


def save(path: Path, **arrays: Any) -> Path:
    """An npz file of 8 x 8 images with labels ±1: four training, three test points."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 8, 8)) / 8
    y = np.array([1, -1, 1, -1, 1, -1, 1])
    good = {"x_train": x[:4], "y_train": y[:4], "x_test": x[4:], "y_test": y[4:]}
    arrays = {k: v for k, v in {**good, **arrays}.items() if v is not None}
    file = path / "data.npz"
    np.savez(file, **arrays)
    return file


def test_digits_are_compared_by_default(tmp_path: Path) -> None:
    result = run(tmp_path / "new" / "folder", "--order", "2,3")
    assert result.exit_code == 0
    out = result.stdout
    assert "4 training and 3 test points; tanh network, width 8, depth 1" in out
    for message in ("odd against even", "float64", "network loss", "p = 2", "p = 3"):
        assert message in out
    folder = tmp_path / "new" / "folder"
    assert str(folder / "levels.png") in out
    assert (folder / "levels.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = (folder / "levels.txt").read_text()
    assert "p = 3" in table
    assert table in out


def test_tables_for_other_programs(tmp_path: Path, no_figure: None) -> None:
    """All formats hold the same numbers, and those of the printed table."""
    kinds = ("csv", "json", "parquet")
    result = run(tmp_path, *(f"--format={kind}" for kind in kinds))
    assert "levels.txt, levels.csv" in result.stdout
    for name in ("levels", "outputs"):
        csv, json, parquet = (
            getattr(pandas, f"read_{kind}")(tmp_path / f"{name}.{kind}")
            for kind in kinds
        )
        for table in (json, parquet):  # text has no float32
            pandas.testing.assert_frame_equal(csv, table, check_dtype=False)
    outputs = pandas.read_csv(tmp_path / "outputs.csv")
    last = outputs[outputs.time == 1.0].set_index(["model", "points", "point"]).value
    difference = last["p=2"] - last["truth"]
    levels = pandas.read_csv(tmp_path / "levels.csv").set_index(["model", "time"])
    for points in ("train", "test"):
        error = np.sqrt(np.mean(difference[points] ** 2))
        row = levels.loc["p=2", 1.0]
        np.testing.assert_allclose(row[f"{points}_error"], error, rtol=1e-9)


def test_data_file_gives_the_table_of_compare(tmp_path: Path, no_figure: None) -> None:
    """Images become vectors; the output is that of `nth.compare`."""
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
    assert "squared error of one output on targets -1 and +1" in result.stdout
    assert "test accuracy at t = 1: trained network" in result.stdout


def test_data_without_test_points(tmp_path: Path, no_figure: None) -> None:
    """In float32, with vector targets."""
    file = save(tmp_path, y_train=np.eye(2)[[0, 1, 0, 1]], x_test=None, y_test=None)
    result = run(tmp_path, "--data", file, "--dtype=float32", "--times=0.5,1")
    assert result.exit_code == 0
    assert "4 training and 0 test points; tanh network" in result.stdout
    assert "seed 0, float32" in result.stdout
    assert "train accuracy at t = 1: trained network" in result.stdout
    assert "test accuracy" not in result.stdout
    assert not jax.config.read("jax_enable_x64")


def test_help_describes_every_option() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert len(main.params) > 10
    for option in main.params:
        assert all(name in result.stdout for name in option.opts)
        assert getattr(option, "help", None)


def test_activations_are_those_of_the_mlp() -> None:
    """The command line has a list of its own, which avoids importing JAX."""
    assert set(command._ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_do_not_import_jax(option: str) -> None:
    script = (
        f"import runpy, sys; sys.argv = ['nth', {option!r}]\n"
        "try: runpy.run_module('nth', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print([m for m in ('jax', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.endswith("status 0\n[]\n")
    expected = (
        f"nth, version {nth.__version__}\n" if option == "--version" else "Usage: "
    )
    assert out.startswith(expected)


def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> str:
    """The single line on stderr for bad `arguments`, with exit status 2."""
    monkeypatch.setattr(sys, "argv", ["nth", *TINY, *map(str, arguments)])
    assert cli() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nth: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--widht 3", "--widht"),
        ("--width", "--width"),
        ("--width abc", "'abc' is not a valid integer"),
        ("--width 0", "'--width': 0 is not in the range"),
        ("--width 99999999999999999999", "'--width': 99999999999999999999 is not in"),
        ("--depth 0", "'--depth': 0 is not in the range"),
        ("stray", "unexpected extra argument (stray)"),
        ("--order 2,x", "'--order': '2,x' is not a comma-separated list"),
        ("--order 2.5", "'--order': '2.5'"),
        ("--order 1", "'--order': levels must be at least 2"),
        ("--order 40", "on the command line at most 10; got 40"),
        ("--order 2,2", "'--order': levels must be distinct; got (2, 2)"),
        ("--until -1", "'--until': must be finite and above 0; got -1"),
        ("--until 0", "'--until': must be finite and above 0; got 0"),
        ("--until nan", "'--until': must be finite and above 0; got nan"),
        ("--until inf", "'--until': must be finite and above 0; got inf"),
        ("--until 1e-44 --dtype float32", "--until 1e-44: times must be finite and"),
        ("--until 1e300 --dtype float32", "--until 1e+300: times must be finite and"),
        ("--times 3,2,1", "'--times': times must be increasing; got (3.0, 2.0, 1.0)"),
        ("--times 1,nan", "'--times': times must be finite and at least 0"),
        ("--times=-1,1", "'--times': times must be finite and at least 0"),
        ("--times 1,1e400", "'--times': times must be finite and at least 0"),
        ("--times 1,1.000000001 --dtype float32", "--times: times must be finite and"),
        ("--times 1;2", "'--times': '1;2' is not a comma-separated list"),
        ("--loss hinge", "'--loss': 'hinge' is not one of"),
        ("--activation tahn", "'--activation': 'tahn' is not one of 'tanh'"),
        ("--train 5000", "--train and --test ask for 5003 digits of 1797"),
        ("--seed -1", "'--seed': -1 is not in the range"),
        (
            "--seed 99999999999999999999999",
            "'--seed': 99999999999999999999999 is not in",
        ),
        ("--seed 4294967296", "'--seed': 4294967296 is not in the range"),
        ("--train 0", "'--train': 0 is not in the range"),
        ("--test -1", "'--test': -1 is not in the range"),
        ("--dtype float16", "'--dtype': 'float16' is not one of"),
        ("--data nowhere.npz", "'--data': File 'nowhere.npz' does not exist"),
        ("--data .", "'--data': File '.' is a directory"),
        ("--data /dev/null", "cannot read /dev/null as npz: it is not a regular file"),
    ],
)
def test_bad_options_are_named(
    monkeypatch, capsys, arguments: str, message: str
) -> None:
    assert message in refuse(monkeypatch, capsys, *arguments.split())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": None}, "data.npz has no array x_train"),
        ({"y_train": None}, "data.npz has no array y_train"),
        ({"x_train": np.full((4, 8, 8), np.nan)}, "x_train has NaN"),
        ({"y_train": [1, -1, np.inf, 1]}, "y_train has NaN"),
        ({"x_train": np.full((4, 8, 8), "a")}, "x_train must hold real numbers"),
        ({"y_train": [1j, 1, 1, 1]}, "y_train must hold real numbers; got complex"),
        ({"y_train": [1.0, -1.0]}, "y_train has shape (2,)"),
        ({"x_test": np.ones((3, 5))}, "x_test has inputs of shape (5,)"),
        ({"x_train": 1.0}, "x_train must have shape (points, *in)"),
        ({"x_train": np.ones((4, 0))}, "x_train has inputs with no number"),
        ({"y_test": [1.0]}, "y_test has shape (1,)"),
        ({"y_test": [1.0, np.nan, 1.0]}, "y_test has labels that y_train has not, nan"),
        ({"y_train": np.ones((4, 2)), "y_test": np.eye(3)}, "y_test has shape (3, 3)"),
        ({"x_test": None}, "data.npz has y_test and no x_test"),
    ],
)
def test_bad_arrays_are_named(
    monkeypatch, capsys, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    file = save(tmp_path, **arrays)
    assert message in refuse(monkeypatch, capsys, "--data", file)


@pytest.mark.parametrize("content", [b"", b"no npz at all"])
def test_files_that_are_not_npz_are_refused(
    monkeypatch, capsys, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(content)
    line = refuse(monkeypatch, capsys, "--data", file)
    assert f"cannot read {file} as npz" in line


def test_damaged_files_and_single_arrays_are_refused(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    whole = save(tmp_path).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:200] + b"?" * 9 + whole[209:]):
        file = tmp_path / "damaged.npz"
        file.write_bytes(content)
        assert "cannot read" in refuse(monkeypatch, capsys, "--data", file)
    np.save(tmp_path / "one.npy", np.ones(3))
    line = refuse(monkeypatch, capsys, "--data", tmp_path / "one.npy")
    assert "np.savez writes" in line


def test_a_failed_solve_is_one_line(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(nth, "compare", partial(nth.compare, max_steps=3))
    monkeypatch.setattr(sys, "argv", ["nth", *TINY, "--output", str(tmp_path)])
    assert cli() == 1
    line = capsys.readouterr().err
    assert line.startswith("nth: the solve of the network failed at t = ")
    assert line.count("\n") == 1


def test_pickles_are_not_loaded(monkeypatch, capsys, tmp_path: Path) -> None:
    file = save(tmp_path, x_train=np.array([object()] * 4, dtype=object))
    assert "cannot read" in refuse(monkeypatch, capsys, "--data", file)


def test_an_unwritable_output_folder_is_refused(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    """Before the solve."""
    monkeypatch.setattr(nth, "compare", None)
    file = save(tmp_path)
    assert "is a file" in refuse(monkeypatch, capsys, "--output", file)
    line = refuse(monkeypatch, capsys, "--output", file / "folder")
    assert "--output: cannot write into" in line
    (tmp_path / "levels.png").mkdir()
    line = refuse(monkeypatch, capsys, "--output", tmp_path)
    assert "levels.png is a folder" in line


def arguments_of_compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: Any
) -> Any:
    """The arguments of `nth.compare`, and the output printed before the call."""
    calls = []

    def compare(network, problem, ts, orders, y_test):
        calls.append((network, problem, y_test))
        raise ValueError("seen")

    monkeypatch.setattr(nth, "compare", compare)
    message = [*TINY, "--output", str(tmp_path), *map(str, arguments)]
    result = CliRunner().invoke(main, message)
    assert isinstance(result.exception, ValueError)
    return (*calls[0], result.stdout)


def test_class_labels_give_the_table_of_compare(
    tmp_path: Path, no_figure: None
) -> None:
    """Integers of three classes, in float32; the output is that of `nth.compare`."""
    labels = np.array([0, 2, 1, 2, 0, 1, 2], np.uint8)
    file = save(tmp_path, y_train=labels[:4], y_test=labels[4:])
    result = run(tmp_path, "--data", file, "--dtype=float32")
    with np.load(file) as arrays:
        x = [arrays[k].reshape(-1, 64).astype("f4") for k in ("x_train", "x_test")]
    loss = nth.SoftmaxCrossEntropy()
    problem = nth.Problem(x[0], labels[:4].astype("i4"), x[1], loss=loss)
    network = nth.MLP(64, 8, 1, out_size=3, key=jax.random.key(0))
    y_test = labels[4:].astype("i4")
    expected = nth.compare(network, problem, times_until(1.0), (2,), y_test=y_test)
    assert str(expected) in result.stdout
    line = "3 classes, labels 0 to 2: softmax cross-entropy of 3 outputs\n"
    assert line in result.stdout
    assert "test accuracy at t = 1: trained network" in result.stdout


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy", "logistic"])
def test_loss_option_sets_loss_and_targets(
    monkeypatch, tmp_path: Path, loss: str
) -> None:
    network, problem, y_test, out = arguments_of_compare(
        monkeypatch, tmp_path, "--loss", loss
    )
    y_train = np.asarray(problem.y_train)
    if loss == "cross-entropy":
        assert isinstance(problem.loss, nth.SoftmaxCrossEntropy)
        assert network.out_size == 2
        assert set(y_train) | set(y_test) == {0, 1}
        assert "2 classes, labels -1, 1: softmax cross-entropy of 2 outputs" in out
    else:
        kind = nth.LogisticLoss if loss == "logistic" else nth.SquaredError
        assert isinstance(problem.loss, kind)
        assert network.out_size == "scalar"
        assert set(y_train) | set(y_test) == {-1, 1}


def test_large_inputs_warn_or_are_normalized(monkeypatch, tmp_path: Path) -> None:
    """Pixels 0 to 255 cause a warning, and are normalized on request."""
    pixels = np.random.default_rng(0).integers(1, 256, (7, 8, 8), dtype=np.uint8)
    file = save(tmp_path, x_train=pixels[:4], x_test=pixels[4:])
    with pytest.warns(UserWarning, match=r"norm of an input is .* give --normalize"):
        arguments_of_compare(monkeypatch, tmp_path, "--data", file)
    arguments = ("--data", file, "--normalize")
    _, problem, _, _ = arguments_of_compare(monkeypatch, tmp_path, *arguments)
    flat = pixels.reshape(7, 64).astype(float)
    expected = flat / np.sqrt((flat**2).sum(1))[:, None]
    np.testing.assert_allclose(problem.x, expected, rtol=1e-14)


def test_warnings_are_one_line(tmp_path: Path) -> None:
    file = save(tmp_path, x_train=np.ones((4, 64)), x_test=np.ones((3, 64)))
    command = [sys.executable, "-m", "nth", *TINY, "--times=0", "--data", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("nth: warning: the largest norm of an input is 8, ")
    assert done.stderr.count("\n") == 1


def test_exit_status_of_bad_options_is_2(tmp_path: Path) -> None:
    """In a process of its own."""
    command = [sys.executable, "-m", "nth", "--width", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "nth: Invalid value for '--width': 0 is not in the range 1<=x<=1000000.\n"
    )
    assert list(tmp_path.iterdir()) == []
