"""Files: written whole or not at all, links and races, tampering, bad paths."""

import builtins
import errno
import json
import os
import resource
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
from conftest import make_network, make_problem, tampered

import nth
from nth._internal import archive as _archive
from nth._internal.checkpoint import Checkpoint
from nth._solution.results import RESULTS

TREE = (np.asarray(2), np.arange(6.0).reshape(2, 3), {"a": np.asarray([True, False])})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.npz"


@pytest.fixture
def checkpoint(file: Path) -> Checkpoint:
    checkpoint = Checkpoint(file, "identity")
    checkpoint.write(TREE)
    return checkpoint


def assert_equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "leaf",
    [
        np.asarray(1.5, ml_dtypes.bfloat16),
        np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        np.arange(6, dtype=">f8"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0)[::2],
        np.zeros((0, 3)),
        np.asarray([1 + 2j]),
        jnp.arange(3, dtype=jnp.int8),
    ],
)
def test_arrays_come_back(leaf: Any, file: Path) -> None:
    checkpoint = Checkpoint(file, "identity")
    checkpoint.write([leaf])
    found = checkpoint.read([leaf])
    assert found is not None
    (found,) = found
    assert found.dtype.name == leaf.dtype.name
    np.testing.assert_array_equal(found, leaf)


def test_it_is_an_npz_file(checkpoint: Checkpoint) -> None:
    with np.load(checkpoint.path) as found:
        assert json.loads(str(found["header"]))["identity"] == "identity"
        np.testing.assert_array_equal(found["leaf_1"], TREE[1])


# Tampering


def resaved(file: Path, save: Callable[..., None] = np.savez, **changes: Any) -> None:
    """The same archive with other members, header and digest as they were."""
    with np.load(file) as found:
        arrays = {**found, **changes}
    save(file, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    "change",
    [
        {"leaf_1": np.arange(6.0).reshape(2, 3) + 1},
        {"leaf_1": np.arange(6.0)},
        {"leaf_1": np.arange(6.0).reshape(3, 2)},
        {"leaf_1": np.arange(6).reshape(2, 3)},
        {"leaf_1": np.array([[1, "a", None]] * 2, object)},
        {"leaf_1": np.array([["a", "b", "c"]] * 2)},
        {"leaf_1": None},
        {"digest": None},
        {"digest": np.asarray("0" * 64)},
        {"header": np.asarray("[" * 100_000)},
        {"header": np.asarray("{}")},
        {"header": np.asarray('{"identity": "identity", "leaves": 3}')},
        {"header": np.arange(3)},
        {"save": np.savez_compressed},
    ],
)
def test_a_tampered_file_is_refused(
    change: dict[str, Any], checkpoint: Checkpoint
) -> None:
    resaved(checkpoint.path, **change)
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.npz is damaged, or is"):
        checkpoint.read(TREE)


@pytest.mark.parametrize(
    "leaf",
    [np.arange(6.0), np.arange(6).reshape(2, 3), np.arange(6, dtype=np.float32)],
)
def test_arrays_are_checked_although_the_digest_is_right(
    leaf: np.ndarray, checkpoint: Checkpoint
) -> None:
    tampered(checkpoint.path, leaf_1=leaf)
    with pytest.raises(ValueError, match="other shapes or dtypes than expected"):
        checkpoint.read(TREE)


@contextmanager
def little_memory() -> Iterator[None]:
    """Less than 2 MB are allocated inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_foreign_file_is_refused_before_its_arrays_are_read(file: Path) -> None:
    large = np.zeros(2**22)
    Checkpoint(file, "another").write(large)
    with little_memory(), pytest.raises(ValueError, match="belongs to another solve"):
        Checkpoint(file, "identity").read(large)
    with little_memory(), pytest.raises(ValueError, match="other shapes or dtypes"):
        Checkpoint(file, "another").read(large[1:])


def test_a_zip_bomb_is_refused_before_it_expands(file: Path) -> None:
    large = np.zeros(2**22)
    Checkpoint(file, "identity").write(large)
    with np.load(file) as found:
        np.savez_compressed(file, **found)
    assert file.stat().st_size < 2**16
    with little_memory(), pytest.raises(ValueError, match="compressed"):
        Checkpoint(file, "identity").read(large)


def test_an_array_is_not_allocated_beyond_its_file(file: Path) -> None:
    """A header that says 2²² numbers where there are 3."""
    large = np.zeros(2**22)
    Checkpoint(file, "identity").write(large)
    resaved(file, leaf_0=np.zeros(3))
    content = file.read_bytes().replace(b"(3,), }" + b" " * 6, b"(4194304,), }")
    file.write_bytes(content)
    with little_memory(), pytest.raises(ValueError, match="is damaged"):
        Checkpoint(file, "identity").read(large)


# Links, races, permissions


def test_a_link_stays_a_link(tmp_path: Path, file: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target.npz"
    file.symlink_to(target)  # also while there is no target
    for _ in range(2):
        Checkpoint(file, "identity").write(TREE)
        assert file.is_symlink()
        assert os.listdir(target.parent) == [target.name]
        assert_equal(Checkpoint(target, "identity").read(TREE), TREE)


def test_a_planted_link_is_not_followed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".run.npz.partial", ".run.npz.0123456789abcdef.partial"):
        (tmp_path / name).symlink_to(victim)
    Checkpoint(file, "identity").write(TREE)
    monkeypatch.setattr("secrets.token_hex", lambda size: "0123456789abcdef")
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.npz cannot be written"):
        Checkpoint(file, "identity").write(TREE)
    assert victim.read_text() == "precious"
    assert (tmp_path / ".run.npz.0123456789abcdef.partial").is_symlink()


def test_writers_at_once_all_survive(checkpoint: Checkpoint) -> None:
    """And whoever reads meanwhile finds a whole file."""
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(40):
                checkpoint.write((np.asarray(number), *TREE[1:]))
                found = checkpoint.read(TREE)
                assert found is not None
                assert 0 <= found[0] < 4
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(checkpoint.path.parent) == [checkpoint.path.name]


def test_permissions_are_those_of_the_umask(file: Path) -> None:
    before = os.umask(0o027)
    try:
        Checkpoint(file, "identity").write(TREE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_killed_writes_left_is_removed_after_a_day(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    old, new, other = (
        tmp_path / f".{name}.{digit * 16}.partial"
        for name, digit in (("run.npz", "a"), ("run.npz", "b"), ("other.npz", "a"))
    )
    for left in (old, new, other):
        left.write_bytes(b"")
    for left in (old, other):
        yesterday = time.time() - 25 * 3600
        os.utime(left, (yesterday, yesterday))
    checkpoint.write(TREE)
    assert not old.exists()
    assert new.exists()
    assert other.exists()


# Writes that fail


def no_space(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def limited_files() -> Iterator[None]:
    """No file may grow beyond 4 KiB: a write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
    if "x" in mode:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return builtins.open(path, mode, *arguments, **options)


@pytest.mark.parametrize("how", ["savez", "fsync", "replace", "limit", "open"])
def test_a_write_that_fails_leaves_what_was(
    how: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = checkpoint.path, checkpoint.path.read_bytes()
    message = r"checkpoint: .*run\.npz cannot be written: .*give another path"
    with monkeypatch.context() as patch:
        if how == "open":
            patch.setattr(_archive, "open", refused_open, raising=False)
        elif how != "limit":
            patch.setattr(np if how == "savez" else os, how, no_space)
        with limited_files(), pytest.raises(ValueError, match=message):
            checkpoint.write((*TREE, np.arange(1e4)))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "user", ["integrate", "sweep", "Kernels.save", "Solution.save"]
)
def test_every_function_says_which_file_cannot_be_written(
    user: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    argument = "path" if "." in user or user == "sweep" else "checkpoint"
    message = rf"^{argument}: .*run\.npz cannot be written: .*No space left on device"
    with pytest.raises(ValueError, match=message):
        users(file)[user]()
    assert os.listdir(file.parent) == []


def test_an_interrupted_write_leaves_nothing(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(TREE)
    assert os.listdir(checkpoint.path.parent) == [checkpoint.path.name]


def test_a_folder_that_has_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    checkpoint = Checkpoint(folder / "run.npz", "identity")
    folder.rmdir()
    with pytest.raises(ValueError, match=r"checkpoint: .*cannot be written"):
        checkpoint.write(TREE)


# Bad paths, by every function that takes one


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
def test_bad_paths(user: str, path: Any, message: str) -> None:
    argument = "path" if "." in user or user == "sweep" else "checkpoint"
    with pytest.raises(ValueError, match=f"^{argument}:? {message}"):
        users(path)[user]()


@pytest.mark.parametrize("path", [3, True, b"run.npz", ["run.npz"]])
def test_paths_of_another_type(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for user, call in users(path).items():
        argument = "path" if "." in user or user == "sweep" else "checkpoint"
        message = (
            f"^{argument} must be the path of a file, a str or an os.PathLike; got"
        )
        with pytest.raises(ValueError, match=message):
            call()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be the path of a regular file"):
        Checkpoint(tmp_path / "pipe", "identity")


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="must be the path of a file"):
        Checkpoint(tmp_path / "loop", "identity")


@pytest.mark.parametrize("done", [-1, 99])
def test_a_sweep_with_too_many_batches_is_refused(done: int, file: Path) -> None:
    def sweep() -> Any:
        return nth.scaling.sweep(measure, [2], 2, key=jax.random.key(0), path=file)

    sweep()
    tampered(file, leaf_0=np.asarray(done))
    with pytest.raises(ValueError, match=f"is damaged.*it has {done} of 1 batches"):
        sweep()
    tampered(file, leaf_0=np.asarray(1), leaf_1=np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"is damaged.*other shapes"):
        sweep()
