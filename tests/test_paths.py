"""Bad paths, and files that cannot be written, for every function that takes a path."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from conftest import make_network, make_problem

import nth
from nth._internal.checkpoint import Checkpoint
from nth._solution.results import RESULTS


def no_space(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "user", ["integrate", "sweep", "Kernels.save", "Solution.save"]
)
def test_every_function_names_the_file_that_cannot_be_written(
    user: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    argument = "path" if "." in user or user == "sweep" else "checkpoint"
    message = rf"^{argument}: .*run\.npz cannot be written: .*No space left on device"
    with pytest.raises(ValueError, match=message):
        users(file)[user]()
    assert os.listdir(file.parent) == []


def measure(width: int, key: jax.Array) -> jax.Array:
    return jax.random.normal(key, ())


def solution() -> nth.Solution:
    zeros, zero = jnp.zeros((1, 4)), jnp.zeros(())
    return nth.Solution(
        jnp.ones(1),
        zeros,
        zeros,
        jnp.zeros(1),
        zero,
        jnp.zeros(1),
        jnp.zeros(1),
        RESULTS.successful,
        zeros,
        {},
        "",
        "",
    )


def users(path: Any) -> dict[str, Callable[[], Any]]:
    network, problem = make_network(3, 1), make_problem()
    dynamics = nth.GradientFlow(network, problem)
    outputs = dynamics.outputs(dynamics.initial_state())
    kernels = nth.Kernels((outputs, jnp.zeros((6, 4))))
    ts: Any = [1.0]
    return {
        "integrate": lambda: nth.integrate(dynamics, ts, checkpoint=path),
        "solve": lambda: nth.solve(network, problem, ts, order=2, checkpoint=path),
        "compare": lambda: nth.compare(network, problem, ts, checkpoint=path),
        "gradient_flow": lambda: nth.gradient_flow(
            network, problem, ts, checkpoint=path
        ),
        "sweep": lambda: nth.scaling.sweep(
            measure, [2], 1, key=jax.random.key(0), path=path
        ),
        "Kernels.save": lambda: kernels.save(path, network, problem),
        "Kernels.load": lambda: nth.Kernels.load(path, network, problem),
        "Solution.save": lambda: solution().save(path),
        "Solution.load": lambda: nth.Solution.load(path),
    }


@pytest.mark.parametrize("user", users(""))
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/full", "must be the path of a regular file; /dev/full"),
        ("/dev/zero", "must be the path of a regular file; /dev/zero"),
        ("/tmp", "must be the path of a regular file; /tmp is a folder"),
        ("", "must be the path of a regular file"),
        ("run\0.npz", "must be the path of a file; got 'run"),
        ("a" * 300, "must be the path of a file; got 'aaa.*too long"),
        ("/etc/passwd/run.npz", "must be the path of a file|there is no folder"),
        ("absent/run.npz", "there is no folder .*absent"),
    ],
)
def test_bad_paths_are_refused(user: str, path: Any, message: str) -> None:
    argument = "path" if "." in user or user == "sweep" else "checkpoint"
    with pytest.raises(ValueError, match=f"^{argument}:? {message}"):
        users(path)[user]()


@pytest.mark.parametrize("path", [3, True, b"run.npz", ["run.npz"]])
def test_paths_of_other_types_are_refused(
    path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for user, call in users(path).items():
        argument = "path" if "." in user or user == "sweep" else "checkpoint"
        message = (
            f"^{argument} must be the path of a file, a str or an os.PathLike; got"
        )
        with pytest.raises(ValueError, match=message):
            call()


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be the path of a regular file"):
        Checkpoint(tmp_path / "pipe", "identity")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="must be the path of a file"):
        Checkpoint(tmp_path / "loop", "identity")
