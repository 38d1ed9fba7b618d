"""Checkpoints and progress: killed, damaged, foreign, finished."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem, tampered
from jax.core import Tracer

import nth
from nth._integrate import integrate as _integrate, progress
from nth._internal.checkpoint import Checkpoint

TS = [0.0, 0.5, 1.0, 2.0, 3.0]
ROOT = Path(nth.__file__).parents[1]


class Relaxation(nth.AbstractDynamics):
    """df/dt = −rate·g, with every evaluation counted: quick to compile."""

    problem: nth.Problem
    label: str = "relaxation"
    rate: float = 1.0
    jump: float = 1.0  # the rate is so many times greater after t = 0.7
    method: ClassVar[str] = "custom"
    truncated: ClassVar[bool] = False

    def initial_state(self):
        return jnp.zeros_like(self.problem.x[:, 0])

    def vector_field(self, t, state, args):
        jax.debug.callback(lambda: CALLS.append(None))
        g = self.output_gradient(state)
        rate = self.rate * jnp.where(t > 0.7, self.jump, 1.0)
        return -rate * jnp.concatenate([g, jnp.zeros_like(state[4:])])

    def outputs(self, state):
        return state

    def penalty(self, state):
        return jnp.zeros(())

    def error_norm(self, scaled):
        return jnp.max(jnp.abs(scaled))


class Watched(Relaxation):
    """The same, but that the window is looked for."""

    truncated: ClassVar[bool] = True


CALLS: list[None] = []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.npz"


@pytest.fixture
def no_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may be solved; only shapes may be computed."""
    solve = _integrate.solve_piece

    def refuse(dynamics: Any, state: Any, *args: Any, **options: Any) -> Any:
        leaves = jax.tree.leaves(state)
        assert all(isinstance(leaf, Tracer) for leaf in leaves), "a solve"
        return solve(dynamics, state, *args, **options)

    monkeypatch.setattr(_integrate, "solve_piece", refuse)


def relaxation(**options: Any) -> Relaxation:
    return Relaxation(problem=make_problem(), **options)


def equal(one: nth.Solution, other: nth.Solution) -> None:
    """Bit for bit, statistics and state included."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert one.stats.keys() == other.stats.keys()


def interrupted(
    monkeypatch: pytest.MonkeyPatch, file: Path, writes: int, run: Any
) -> None:
    """`run`, stopped by an exception after so many writes."""
    write = Checkpoint.write
    done = []

    def stop(self: Checkpoint, tree: Any) -> None:
        write(self, tree)
        done.append(None)
        if len(done) == writes:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=file)
    assert file.exists()


def make(method: str) -> nth.AbstractDynamics:
    problem = make_problem()
    if method == "relaxation":
        return Relaxation(problem=problem)
    network = make_network(4, 1)
    if method == "dense":
        return nth.DenseHierarchy(nth.kernels(network, problem, order=3), problem)
    if method == "matrix-free":
        return nth.MatrixFreeHierarchy(network, problem, order=2)
    return nth.GradientFlow(network, problem)


LABELS = {
    "dense": "level-3 hierarchy",
    "matrix-free": "level-2 hierarchy",
    "gradient flow": "network",
}


@pytest.mark.parametrize("method", LABELS)
def test_a_checkpoint_changes_no_answer(
    method: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Equal to a solve in one piece within tolerance; exactly, however stopped."""
    dynamics = make(method)

    def run(**options: Any) -> nth.Solution:
        return nth.integrate(dynamics, TS, **options)

    undisturbed = run(checkpoint=file.with_name("undisturbed.npz"))
    monkeypatch.setattr("nth._internal.progress.DELAY", 0)
    # Up to rounding: the two compile to different code.
    shown, hidden = (run(progress=option).train for option in (True, False))
    np.testing.assert_allclose(shown, hidden, rtol=1e-12)
    assert f"{LABELS[method]}: " in capsys.readouterr().err
    interrupted(monkeypatch, file, 2, run)
    resumed = run(checkpoint=file)
    equal(undisturbed, resumed)
    # To each time in a solve of its own, of one shape, which compiles once.
    whole = [nth.integrate(dynamics, [t]) for t in TS]
    for name in ("train", "test", "loss"):
        one = np.concatenate([getattr(solution, name) for solution in whole])
        np.testing.assert_allclose(one, getattr(resumed, name), rtol=0, atol=1e-6)
    assert whole[-1].stats["last_time"] == resumed.stats["last_time"] == TS[-1]


def test_solve_and_gradient_flow_take_it(file: Path, no_solve: None) -> None:
    """The option reaches `integrate`: a file that is foreign is refused."""
    file.write_bytes(b"foreign")
    network, problem = make_network(3, 1), make_problem()
    with pytest.raises(ValueError, match="damaged"):
        nth.solve(network, problem, TS, order=2, checkpoint=file)
    with pytest.raises(ValueError, match="damaged"):
        nth.gradient_flow(network, problem, TS, checkpoint=str(file))


def test_a_finished_checkpoint_answers_without_a_solve(
    file: Path, request: pytest.FixtureRequest
) -> None:
    dynamics = relaxation()
    solved = nth.integrate(dynamics, TS, checkpoint=file)
    before = file.read_bytes()
    request.getfixturevalue("no_solve")
    CALLS.clear()
    equal(solved, nth.integrate(relaxation(), TS, checkpoint=str(file)))
    jax.effects_barrier()
    assert not CALLS
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_compare_has_a_file_for_each_model(
    file: Path, request: pytest.FixtureRequest
) -> None:
    network, problem = make_network(3, 1), make_problem()

    def run() -> nth.Comparison:
        return nth.compare(
            network, problem, [0.5, 1.0], (2, 3), method="dense", checkpoint=file
        )

    solved = run()
    names = ["run-p2.npz", "run-p3.npz", "run-truth.npz"]
    assert sorted(os.listdir(file.parent)) == names
    request.getfixturevalue("no_solve")
    again = run()
    equal(solved.truth, again.truth)
    for p in (2, 3):
        equal(solved.solutions[p], again.solutions[p])


# What a child process runs. Either, before JAX starts, it forks a process for each
# point of a write, which kills itself there, and keeps a copy of what that left; or it
# solves slowly enough to be killed from outside.
CHILD = """
import os, shutil, signal, sys, time
import numpy as np
import jax

jax.config.update("jax_enable_x64", True)
import nth
from nth._internal import checkpoint as _checkpoint
from test_checkpoint import TS, make


def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(file, **arrays):
    file.write(b"PK half a file")
    file.flush()
    die()


def solve(where):
    write = _checkpoint.Checkpoint.write
    dynamics = make(method)
    if where == "outside":
        slow = lambda self, tree: (write(self, tree), time.sleep(0.2))
        _checkpoint.Checkpoint.write = slow
    elif where == "written":
        _checkpoint.Checkpoint.write = lambda self, tree: die(write(self, tree))
    elif where == "savez":
        np.savez = half_a_file
    elif where == "fsync":
        os.fsync = die
    elif where == "replace":
        os.replace = die
    nth.integrate(dynamics, TS, checkpoint=sys.argv[1])


method, *points = sys.argv[2:]
if points == ["outside"]:
    solve("outside")
    sys.exit()
for where in points:
    child = os.fork()
    if child == 0:
        solve(where)
        os._exit(0)  # alive: a point that was not met
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, where
    if os.path.exists(sys.argv[1]):
        shutil.copy(sys.argv[1], f"{sys.argv[1]}-{where}")
"""


def start(file: Path, method: str, *points: str) -> subprocess.Popen[str]:
    folders = [ROOT, Path(__file__).parent, os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", CHILD, str(file), method, *points]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that do not outlive the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def known_times(file: Path) -> int:
    """How many times a whole checkpoint holds; it must be whole, or absent."""
    if not file.exists():
        return 0
    with np.load(file) as arrays:
        for name in arrays.files:
            assert arrays[name] is not None  # read through, checksums and all
        return int(arrays["leaf_0"])


def goes_on(file: Path, method: str) -> None:
    """From `file`, to the answer bit for bit that an undisturbed run gives."""
    assert 0 < known_times(file) <= len(TS)
    dynamics = make(method)
    resumed = nth.integrate(dynamics, TS, checkpoint=file)
    other = file.with_name(f"{method}-undisturbed.npz")
    equal(nth.integrate(dynamics, TS, checkpoint=other), resumed)


def test_killed_at_each_point_of_a_write(file: Path, children: list[Any]) -> None:
    """SIGKILL: the file is whole, and no later than what was written."""
    points = ("savez", "written", "fsync", "replace")
    child = start(file, "relaxation", *points)
    children.append(child)
    _, errors = child.communicate(timeout=180)
    assert child.returncode == 0, errors[-3000:]
    left = [file.with_name(f"{file.name}-{where}") for where in points]
    assert [known_times(path) for path in left] == [0, 1, 1, 1]
    goes_on(file, "relaxation")


def test_killed_at_any_moment(file: Path, children: list[Any]) -> None:
    """SIGKILL from outside: the file is whole, and the run goes on from it."""
    child = start(file, "gradient flow", "outside")
    children.append(child)
    until = time.monotonic() + 120
    while known_times(file) == 0 and child.poll() is None:
        assert time.monotonic() < until
        time.sleep(np.random.default_rng().uniform(0, 0.01))
    time.sleep(np.random.default_rng().uniform(0, 0.3))
    child.kill()
    _, errors = child.communicate(timeout=180)
    assert child.returncode == -signal.SIGKILL, errors[-3000:]
    goes_on(file, "gradient flow")


def test_two_processes_with_one_file(file: Path, children: list[Any]) -> None:
    """Both come to their end, and the file is whole."""
    for _ in range(2):
        children.append(start(file, "relaxation", "outside"))
    for child in children:
        _, errors = child.communicate(timeout=180)
        assert child.returncode == 0, errors[-3000:]
    assert os.listdir(file.parent) == [file.name]
    assert known_times(file) == len(TS)
    goes_on(file, "relaxation")


def foreign(kind: str) -> dict[str, Any]:
    """Another solve than `integrate(relaxation(), TS)`, in one respect."""
    problem = make_problem()
    points = (problem.x_train, problem.y_train, problem.x_test)
    changed = {
        "targets": nth.Problem(points[0], -points[1], points[2]),
        "points": nth.Problem(points[0] + 1e-9, *points[1:]),
        "test points": nth.Problem(*points[:2], points[2] + 1e-9),
        "loss": nth.Problem(*points, loss=nth.LogisticLoss()),
    }
    if kind in changed:
        return {"dynamics": Relaxation(problem=changed[kind])}
    return {
        "times": {"ts": [*TS[:-1], 3.5]},
        "more times": {"ts": [*TS, 4.0]},
        "rate": {"dynamics": relaxation(rate=1.5)},
        "label": {"dynamics": relaxation(label="another")},
        "solver": {"solver": diffrax.Heun()},
        "tolerance": {
            "stepsize_controller": diffrax.PIDController(rtol=1e-5, atol=1e-5)
        },
    }[kind]


KINDS = (
    "targets",
    "points",
    "test points",
    "loss",
    "times",
    "more times",
    "rate",
    "label",
    "solver",
    "tolerance",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The finished checkpoint of `integrate(relaxation(), TS)`."""
    file = tmp_path_factory.mktemp("written") / "run.npz"
    nth.integrate(relaxation(), TS, checkpoint=file)
    return file.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_solve_is_refused(
    kind: str, file: Path, written: bytes, no_solve: None
) -> None:
    file.write_bytes(written)
    arguments = {"dynamics": relaxation(), "ts": TS, **foreign(kind)}
    with pytest.raises(ValueError, match=r"run\.npz belongs to another solve"):
        nth.integrate(**arguments, checkpoint=file)
    assert file.read_bytes() == written


def test_another_hierarchy_is_refused(file: Path) -> None:
    """Also where only a function without a name differs."""
    problem = make_problem(loss=nth.CustomLoss(lambda f, y: (f - y) ** 2))
    network = make_network(3, 1, activation=lambda z: z)
    one = nth.MatrixFreeHierarchy(network, problem, order=2)
    others = {
        "order": (network, problem, 3),
        "parameters": (make_network(3, 1, activation=lambda z: z, seed=1), problem, 2),
        "activation": (make_network(3, 1, activation=lambda z: z**2), problem, 2),
        "loss": (
            network,
            make_problem(loss=nth.CustomLoss(lambda f, y: (f - y) ** 4)),
            2,
        ),
    }
    nth.integrate(one, [0.0], checkpoint=file)
    before = file.read_bytes()
    for other, points, order in others.values():
        changed = nth.MatrixFreeHierarchy(other, points, order=order)
        with pytest.raises(ValueError, match="belongs to another solve"):
            nth.integrate(changed, [0.0], checkpoint=file)
        assert file.read_bytes() == before


def user_file(written: bytes) -> bytes:
    """An npz of the user's own."""
    import io

    file = io.BytesIO()
    np.savez(file, x_train=np.zeros((3, 2)))
    return file.getvalue()


DAMAGE = {
    "cut short": lambda written: written[:-100],
    "half": lambda written: written[: len(written) // 2],
    "flipped": lambda written: flipped(written, len(written) // 2),
    "random": lambda written: np.random.default_rng(0).bytes(500),
    "empty": lambda written: b"",
    "the user's own": user_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(
    damage: str, file: Path, written: bytes, no_solve: None
) -> None:
    content = DAMAGE[damage](written)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.npz is damaged, or is not"):
        nth.integrate(relaxation(), TS, checkpoint=file)
    assert file.read_bytes() == content


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << place % 8
    return bytes(changed)


def test_no_flipped_bit_gives_another_answer(file: Path) -> None:
    """One bit of every byte in turn: refused, or what was written."""
    tree = (np.asarray(2), np.arange(6.0).reshape(2, 3), {"a": np.asarray(np.inf)})
    checkpoint = Checkpoint(file, "identity")
    checkpoint.write(tree)
    written = file.read_bytes()
    refused = 0
    for place in range(len(written)):
        file.write_bytes(flipped(written, place))
        try:
            found = checkpoint.read(tree)
        except ValueError as error:
            refused += "run.npz" in str(error)
        else:
            jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert refused > len(written) / 2


@pytest.mark.parametrize("done", [-1, 6, 99])
def test_a_checkpoint_with_too_many_times_is_refused(
    done: int, file: Path, written: bytes, no_solve: None
) -> None:
    """Even if its digest is right."""
    file.write_bytes(written)
    content = tampered(file, leaf_0=np.asarray(done))
    with pytest.raises(ValueError, match=f"is damaged.*it has {done} of 5 times"):
        nth.integrate(relaxation(), TS, checkpoint=file)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "leaf", [np.zeros((5, 7)), np.zeros((5, 6), np.float32), np.zeros((5, 6), int)]
)
def test_a_checkpoint_with_another_array_is_refused(
    leaf: np.ndarray, file: Path, written: bytes, no_solve: None
) -> None:
    """The outputs are of shape (5, 6) in float64."""
    file.write_bytes(written)
    tampered(file, leaf_1=leaf)
    with pytest.raises(ValueError, match=r"is damaged.*other shapes or dtypes"):
        nth.integrate(relaxation(), TS, checkpoint=file)


@pytest.mark.parametrize("closed_over", [False, True])
def test_not_under_jit(file: Path, closed_over: bool) -> None:
    dynamics = relaxation()

    def run(given: Any, options: dict[str, Any]) -> jax.Array:
        inner = dynamics if closed_over else given
        return nth.integrate(inner, TS, **options).train

    jitted = eqx.filter_jit(lambda given: run(given, {"checkpoint": file}))
    with pytest.raises(ValueError, match=r"cannot be used under jax\.jit"):
        jitted(None if closed_over else dynamics)
    assert not file.exists()
    jitted = eqx.filter_jit(lambda given: run(given, {"progress": True}))
    expected = run(dynamics, {"progress": False})
    np.testing.assert_allclose(
        jitted(None if closed_over else dynamics), expected, rtol=1e-12
    )


def test_progress_says_what_how_far_and_how_much(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nth.integrate(relaxation(), TS)  # the work is short: no bar
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("nth._internal.progress.DELAY", 0)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    solution = nth.integrate(relaxation(), TS, checkpoint=file)
    first = capsys.readouterr()
    assert "relaxation: 100.0%" in first.err
    assert f"{solution.stats['num_evaluations']} evaluations" in first.err
    assert first.out == ""
    dynamics = relaxation()
    meter = progress.DelayedProgressMeter(dynamics.label, refresh_steps=1)
    nth.integrate(dynamics, TS, progress=meter)
    shares = re.findall(r"relaxation: +([\d.]+)%", capsys.readouterr().err)
    assert (shares[0], shares[-1]) == ("0.0", "100.0")
    assert len(shares) > 3
    assert [float(share) for share in shares] == sorted(map(float, shares))
    nth.integrate(relaxation(), TS, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("solver", "truncated"), [(diffrax.Tsit5(), True), (diffrax.Heun(), False)]
)
def test_evaluations_are_counted(solver: Any, truncated: bool, file: Path) -> None:
    """As many as the vector field says itself, rejected steps included."""
    by_error = diffrax.PIDController(rtol=1e-3, atol=1e-4)
    by_hand = diffrax.StepTo(jnp.linspace(0, 3, 13))
    dynamics = (Watched if truncated else Relaxation)(problem=make_problem(), jump=20.0)
    runs: list[tuple[Any, Path | None]]
    runs = [(by_error, None), (by_error, file), (by_hand, None)]
    for controller, path in runs:
        CALLS.clear()
        solution = nth.integrate(
            dynamics,
            TS[-1:] if path is None else TS,  # of one shape with a stretch
            solver=solver,
            stepsize_controller=controller,
            checkpoint=path,
        )
        jax.block_until_ready(solution.train)
        jax.effects_barrier()
        assert solution.stats["num_evaluations"] == len(CALLS)
        assert (solution.stats["num_rejected_steps"] > 0) == (controller is by_error)


def test_a_failed_stretch_leaves_the_last_good_checkpoint(file: Path) -> None:
    """And more steps are no other solve: with them it goes on from there."""
    ts = [1e-3, 5.0]
    with pytest.raises(RuntimeError, match="it took max_steps=1 steps"):
        nth.integrate(relaxation(), ts, max_steps=1, checkpoint=file)
    assert known_times(file) == 1
    partial = nth.integrate(relaxation(), ts, max_steps=1, checkpoint=file, throw=False)
    assert known_times(file) == 1
    assert np.isfinite(partial.train[0]).all()
    assert np.isnan(partial.train[1]).all()
    resumed = nth.integrate(relaxation(), ts, checkpoint=file)
    other = file.with_name("undisturbed.npz")
    equal(nth.integrate(relaxation(), ts, checkpoint=other), resumed)


class BlowUp(Relaxation):
    """df/dt = +f² on the first point: its loss rises, and it diverges at t = 1."""

    truncated: ClassVar[bool] = True

    def initial_state(self):
        return jnp.zeros_like(self.problem.x[:, 0]).at[0].set(1.0)

    def vector_field(self, t, state, args):
        return jnp.zeros_like(state).at[0].set(state[0] ** 2)


def test_a_diverging_hierarchy_warns_once_and_is_nan_after(file: Path) -> None:
    problem = make_problem()
    problem = nth.Problem(problem.x_train, -jnp.ones(4), problem.x_test)
    dynamics = BlowUp(problem=problem, label="blow-up")
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = nth.integrate(dynamics, [0.5, 0.9, 1.5, 2.0], checkpoint=file)
        assert [w.category for w in caught] == [nth.WindowWarning]
        assert "on they are NaN" in str(caught[0].message)
        exact = 1 / (1 - np.array([0.5, 0.9]))
        np.testing.assert_allclose(solution.train[:2, 0], exact, rtol=1e-5)
        assert np.isnan(solution.train[2:]).all()
        assert solution.valid_until == 0.0
        assert known_times(file) == 2
