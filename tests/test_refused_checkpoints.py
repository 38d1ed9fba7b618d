"""Checkpoints that are refused: of other solves, damaged, or with other arrays."""

from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np
import pytest
from conftest import make_network, make_problem, tampered
from relaxation import TS, Relaxation, relaxation

import nth
from nth._internal.checkpoint import Checkpoint


def foreign(kind: str) -> dict[str, Any]:
    """Arguments that differ from `integrate(relaxation(), TS)` in one respect."""
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
    """Even if only an anonymous function differs."""
    problem = make_problem(loss=nth.CustomLoss(lambda f, y: (f - y) ** 2))
    network = make_network(3, 1, activation=lambda z: z)
    hierarchy = nth.MatrixFreeHierarchy(network, problem, order=2)
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
    nth.integrate(hierarchy, [0.0], checkpoint=file)
    before = file.read_bytes()
    for other, points, order in others.values():
        changed = nth.MatrixFreeHierarchy(other, points, order=order)
        with pytest.raises(ValueError, match="belongs to another solve"):
            nth.integrate(changed, [0.0], checkpoint=file)
        assert file.read_bytes() == before


def user_file(written: bytes) -> bytes:
    """An npz file of the user, not written by nth."""
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


def test_flipped_bits_never_change_the_arrays(file: Path) -> None:
    """With a bit of any byte flipped, a read fails or returns what was saved."""
    tree = (np.asarray(2), np.arange(6.0).reshape(2, 3), {"a": np.asarray(np.inf)})
    checkpoint = Checkpoint(file, "identity")
    checkpoint.write(tree)
    written = file.read_bytes()
    refused = 0
    for place in range(len(written)):
        file.write_bytes(flipped(written, place))
        try:
            read = checkpoint.read(tree)
        except ValueError as error:
            refused += "run.npz" in str(error)
        else:
            jax.tree.map(np.testing.assert_array_equal, read, tree)
    assert refused > len(written) / 2


@pytest.mark.parametrize("done", [-1, 6, 99])
def test_a_checkpoint_with_too_many_times_is_refused(
    done: int, file: Path, written: bytes, no_solve: None
) -> None:
    """Even if its digest matches."""
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
    """The outputs have shape (5, 6) and dtype float64."""
    file.write_bytes(written)
    tampered(file, leaf_1=leaf)
    with pytest.raises(ValueError, match=r"is damaged.*other shapes or dtypes"):
        nth.integrate(relaxation(), TS, checkpoint=file)
