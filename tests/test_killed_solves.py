"""Solves that are killed, and processes that share a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from relaxation import TS, equal, known_times, make

import nth

ROOT = Path(nth.__file__).parents[1]


# The script of a child process. Before JAX starts, it forks a process for each point of
# a write, which kills itself there, and copies the remaining file; or it solves slowly
# enough to be killed from outside.
CHILD = """
import os, shutil, signal, sys, time
import numpy as np
import jax

jax.config.update("jax_enable_x64", True)
import nth
from nth._internal import checkpoint as _checkpoint
from relaxation import TS, make


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
        os._exit(0)  # the point was not reached
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
    """Processes that are killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def assert_resumes(file: Path, method: str) -> None:
    """A solve resumed from `file` equals an uninterrupted one, bit for bit."""
    assert 0 < known_times(file) <= len(TS)
    dynamics = make(method)
    resumed = nth.integrate(dynamics, TS, checkpoint=file)
    other = file.with_name(f"{method}-uninterrupted.npz")
    equal(nth.integrate(dynamics, TS, checkpoint=other), resumed)


def test_a_solve_killed_at_any_point_of_a_write_resumes(
    file: Path, children: list[Any]
) -> None:
    """SIGKILL leaves a complete file, of the last write that ended."""
    points = ("savez", "written", "fsync", "replace")
    child = start(file, "relaxation", *points)
    children.append(child)
    _, errors = child.communicate(timeout=180)
    assert child.returncode == 0, errors[-3000:]
    left = [file.with_name(f"{file.name}-{where}") for where in points]
    assert [known_times(path) for path in left] == [0, 1, 1, 1]
    assert_resumes(file, "relaxation")


def test_a_solve_killed_at_any_time_resumes(file: Path, children: list[Any]) -> None:
    """SIGKILL from outside leaves a complete file, from which the solve resumes."""
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
    assert_resumes(file, "gradient flow")


def test_two_processes_may_share_a_file(file: Path, children: list[Any]) -> None:
    """Both finish, and the file is complete."""
    for _ in range(2):
        children.append(start(file, "relaxation", "outside"))
    for child in children:
        _, errors = child.communicate(timeout=180)
        assert child.returncode == 0, errors[-3000:]
    assert os.listdir(file.parent) == [file.name]
    assert known_times(file) == len(TS)
    assert_resumes(file, "relaxation")
