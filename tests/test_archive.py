"""Files: atomic writes, links and races, tampering, bad paths."""

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
import ml_dtypes
import numpy as np
import pytest
from conftest import tampered

import nth
from nth._internal import archive as _archive
from nth._internal.checkpoint import Checkpoint

TREE = (np.asarray(2), np.arange(6.0).reshape(2, 3), {"a": np.asarray([True, False])})


@pytest.fixture
def checkpoint(file: Path) -> Checkpoint:
    checkpoint = Checkpoint(file, "identity")
    checkpoint.write(TREE)
    return checkpoint


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
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
def test_arrays_round_trip(leaf: Any, file: Path) -> None:
    checkpoint = Checkpoint(file, "identity")
    checkpoint.write([leaf])
    read = checkpoint.read([leaf])
    assert read is not None
    (read,) = read
    assert read.dtype.name == leaf.dtype.name
    np.testing.assert_array_equal(read, leaf)


def test_archive_is_an_npz_file(checkpoint: Checkpoint) -> None:
    with np.load(checkpoint.path) as stored:
        assert json.loads(str(stored["header"]))["identity"] == "identity"
        np.testing.assert_array_equal(stored["leaf_1"], TREE[1])


# Tampering
def resaved(file: Path, save: Callable[..., None] = np.savez, **changes: Any) -> None:
    """The same archive with other members and an unchanged header and digest."""
    with np.load(file) as stored:
        arrays = {**stored, **changes}
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
def test_arrays_are_checked_even_if_the_digest_matches(
    leaf: np.ndarray, checkpoint: Checkpoint
) -> None:
    tampered(checkpoint.path, leaf_1=leaf)
    with pytest.raises(ValueError, match="other shapes or dtypes than expected"):
        checkpoint.read(TREE)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Assert that less than 2 MB are allocated inside the context."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_foreign_file_is_refused_before_its_arrays_are_read(file: Path) -> None:
    large = np.zeros(2**22)
    Checkpoint(file, "another").write(large)
    with limited_memory(), pytest.raises(ValueError, match="belongs to another solve"):
        Checkpoint(file, "identity").read(large)
    with limited_memory(), pytest.raises(ValueError, match="other shapes or dtypes"):
        Checkpoint(file, "another").read(large[1:])


def test_a_zip_bomb_is_refused_before_it_expands(file: Path) -> None:
    large = np.zeros(2**22)
    Checkpoint(file, "identity").write(large)
    with np.load(file) as stored:
        np.savez_compressed(file, **stored)
    assert file.stat().st_size < 2**16
    with limited_memory(), pytest.raises(ValueError, match="compressed"):
        Checkpoint(file, "identity").read(large)


def test_an_array_is_not_allocated_beyond_its_file(file: Path) -> None:
    """With a header that declares 2²² numbers for an array of 3."""
    large = np.zeros(2**22)
    Checkpoint(file, "identity").write(large)
    resaved(file, leaf_0=np.zeros(3))
    content = file.read_bytes().replace(b"(3,), }" + b" " * 6, b"(4194304,), }")
    file.write_bytes(content)
    with limited_memory(), pytest.raises(ValueError, match="is damaged"):
        Checkpoint(file, "identity").read(large)


# Links, races, permissions
def test_writing_through_a_link_keeps_the_link(tmp_path: Path, file: Path) -> None:
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


def test_concurrent_writes_all_succeed(checkpoint: Checkpoint) -> None:
    """Concurrent readers see a complete file."""
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(40):
                checkpoint.write((np.asarray(number), *TREE[1:]))
                read = checkpoint.read(TREE)
                assert read is not None
                assert 0 <= read[0] < 4
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(checkpoint.path.parent) == [checkpoint.path.name]


def test_file_permissions_follow_the_umask(file: Path) -> None:
    before = os.umask(0o027)
    try:
        Checkpoint(file, "identity").write(TREE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_files_of_killed_writes_are_removed_after_a_day(
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
    """Limit files to 4 KiB: a write fails partway, as on a full disk."""
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


@pytest.mark.parametrize("failure", ["savez", "fsync", "replace", "limit", "open"])
def test_a_failed_write_leaves_the_file_unchanged(
    failure: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = checkpoint.path, checkpoint.path.read_bytes()
    message = r"checkpoint: .*run\.npz cannot be written: .*give another path"
    with monkeypatch.context() as patch:
        if failure == "open":
            patch.setattr(_archive, "open", refused_open, raising=False)
        elif failure != "limit":
            patch.setattr(np if failure == "savez" else os, failure, no_space)
        with limited_files(), pytest.raises(ValueError, match=message):
            checkpoint.write((*TREE, np.arange(1e4)))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupted_write_leaves_no_temporary_file(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(TREE)
    assert os.listdir(checkpoint.path.parent) == [checkpoint.path.name]


def test_writing_to_a_removed_folder_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    checkpoint = Checkpoint(folder / "run.npz", "identity")
    folder.rmdir()
    with pytest.raises(ValueError, match=r"checkpoint: .*cannot be written"):
        checkpoint.write(TREE)


# Bad paths, for every function that takes one
def measure(width: int, key: jax.Array) -> jax.Array:
    return jax.random.normal(key, ())


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
