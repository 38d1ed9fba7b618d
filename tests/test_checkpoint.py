"""Checkpoints and progress: interrupted, damaged, foreign and finished solves."""

import os
import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from relaxation import CALLS, TS, Relaxation, equal, known_times, make, relaxation

import nth
from nth._integrate import progress
from nth._internal.checkpoint import Checkpoint


class TruncatedRelaxation(Relaxation):
    """Relaxation with a search for the end of the window."""

    truncated: ClassVar[bool] = True


def interrupted(
    monkeypatch: pytest.MonkeyPatch, file: Path, writes: int, run: Any
) -> None:
    """`run`, stopped by an exception after `writes` writes."""
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


LABELS = {
    "dense": "level-3 hierarchy",
    "matrix-free": "level-2 hierarchy",
    "gradient flow": "network",
}


@pytest.mark.parametrize("method", LABELS)
def test_checkpoints_and_interruptions_do_not_change_results(
    method: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Equal within tolerance to solves without a file, and bitwise if interrupted."""
    dynamics = make(method)

    def run(**options: Any) -> nth.Solution:
        return nth.integrate(dynamics, TS, **options)

    uninterrupted = run(checkpoint=file.with_name("uninterrupted.npz"))
    monkeypatch.setattr("nth._internal.progress.DELAY", 0)
    # Up to rounding error, since the two compile to different code.
    shown, hidden = (run(progress=option).train for option in (True, False))
    np.testing.assert_allclose(shown, hidden, rtol=1e-12)
    assert f"{LABELS[method]}: " in capsys.readouterr().err
    interrupted(monkeypatch, file, 2, run)
    resumed = run(checkpoint=file)
    equal(uninterrupted, resumed)
    # A separate solve to each time; all have one shape and compile once.
    whole = [nth.integrate(dynamics, [t]) for t in TS]
    for name in ("train", "test", "loss"):
        expected = np.concatenate([getattr(solution, name) for solution in whole])
        np.testing.assert_allclose(expected, getattr(resumed, name), rtol=0, atol=1e-6)
    assert whole[-1].stats["last_time"] == resumed.stats["last_time"] == TS[-1]


def test_solve_and_gradient_flow_take_a_checkpoint(file: Path, no_solve: None) -> None:
    """The option reaches `integrate`, which refuses a foreign file."""
    file.write_bytes(b"foreign")
    network, problem = make_network(3, 1), make_problem()
    with pytest.raises(ValueError, match="damaged"):
        nth.solve(network, problem, TS, order=2, checkpoint=file)
    with pytest.raises(ValueError, match="damaged"):
        nth.gradient_flow(network, problem, TS, checkpoint=str(file))


def test_a_finished_checkpoint_is_read_without_a_solve(
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


@pytest.mark.parametrize("closed_over", [False, True])
def test_checkpoints_are_refused_under_jit(file: Path, closed_over: bool) -> None:
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


def test_progress_shows_label_share_and_evaluations(
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
    """The number of calls of the vector field, including rejected steps."""
    by_error = diffrax.PIDController(rtol=1e-3, atol=1e-4)
    by_hand = diffrax.StepTo(jnp.linspace(0, 3, 13))
    dynamics = (TruncatedRelaxation if truncated else Relaxation)(
        problem=make_problem(), jump=20.0
    )
    runs: list[tuple[Any, Path | None]]
    runs = [(by_error, None), (by_error, file), (by_hand, None)]
    for controller, path in runs:
        CALLS.clear()
        solution = nth.integrate(
            dynamics,
            TS[-1:] if path is None else TS,  # the shape of one segment
            solver=solver,
            stepsize_controller=controller,
            checkpoint=path,
        )
        jax.block_until_ready(solution.train)
        jax.effects_barrier()
        assert solution.stats["num_evaluations"] == len(CALLS)
        assert (solution.stats["num_rejected_steps"] > 0) == (controller is by_error)


def test_a_failed_segment_leaves_the_last_valid_checkpoint(file: Path) -> None:
    """A solve with more steps resumes from it: `max_steps` is not in the identity."""
    ts = [1e-3, 5.0]
    with pytest.raises(RuntimeError, match="it took max_steps=1 steps"):
        nth.integrate(relaxation(), ts, max_steps=1, checkpoint=file)
    assert known_times(file) == 1
    partial = nth.integrate(relaxation(), ts, max_steps=1, checkpoint=file, throw=False)
    assert known_times(file) == 1
    assert np.isfinite(partial.train[0]).all()
    assert np.isnan(partial.train[1]).all()
    resumed = nth.integrate(relaxation(), ts, checkpoint=file)
    other = file.with_name("uninterrupted.npz")
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
