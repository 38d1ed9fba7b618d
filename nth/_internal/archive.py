"""Archives of arrays: replaced atomically, and checked before their arrays are read.

An archive is an uncompressed npz file. Its `header` is JSON with the identity of what
the arrays belong to, and the dtype and the shape of each array. Its `digest` is the
SHA-256 of header and arrays.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import secrets
import stat
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

# Seconds after which a temporary file is considered left over from a killed process.
# A running write modifies its file far more often.
_STALE = 24 * 3600
# The largest header in bytes that is read; a header has about 200 for each array.
_LONGEST_TEXT = 2**26


class ArraySpec(NamedTuple):
    """The dtype and the shape of an array in a file."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "ArraySpec":
        """The specification of an array, or of a `jax.ShapeDtypeStruct`."""
        return cls(np.dtype(array.dtype).name, tuple(array.shape))


def save_arrays(path: Path, identity: str, leaves: Sequence[np.ndarray]) -> None:
    """Atomically replace the file `path` by an archive of `leaves`.

    A symbolic link is kept, and its target is replaced.

    **Raises:** `OSError` if it cannot be written.
    """
    leaves = [leaf.astype(leaf.dtype.newbyteorder("="), copy=False) for leaf in leaves]
    specs = [ArraySpec.of(leaf) for leaf in leaves]
    header = json.dumps({"identity": identity, "leaves": specs})
    stored = (
        leaf.view(_stored(spec.dtype)) for leaf, spec in zip(leaves, specs, strict=True)
    )
    arrays: Any = {f"leaf_{i}": leaf for i, leaf in enumerate(stored)}

    def save(file: BinaryIO) -> None:
        np.savez(file, header=header, digest=_digest(header, leaves), **arrays)

    replace_file(Path(os.path.realpath(path)), save)


def load_arrays(
    path: Path, identity: str, fits: Callable[[list[ArraySpec]], bool]
) -> list[np.ndarray] | None:
    """The arrays of an archive; `None` if it has another identity.

    No array is read before `fits` has accepted the header, nor is more memory allocated
    than the file has bytes.

    **Raises:** `FileNotFoundError`, or any exception if the file is damaged.
    """
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        with zipfile.ZipFile(file) as archive:
            _refuse_expansion(archive)
            text = _text(archive, "header")
            header = json.loads(text)
            if header["identity"] != identity:
                return None
            specs = [
                ArraySpec(dtype, tuple(shape)) for dtype, shape in header["leaves"]
            ]
            if not fits(specs):
                raise ValueError("its arrays have other shapes or dtypes than expected")
            leaves = [_leaf(archive, i, spec) for i, spec in enumerate(specs)]
            if _text(archive, "digest") != _digest(text, leaves):
                raise ValueError("its digest is that of another content")
            return leaves


def replace_file(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Atomically replace the file `path` by the output of `save`.

    Each write has a separate temporary file, created exclusively ("x"), so that writers
    do not share a file and no existing link is followed.
    """
    name = path.name[-40:]  # a name has at most 255 bytes
    partial = path.with_name(f".{name}.{secrets.token_hex(8)}.partial")
    with contextlib.ExitStack() as undo:
        with open(partial, "xb") as file:
            # Not before opening: an existing file would belong to another write.
            undo.callback(partial.unlink, missing_ok=True)
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        undo.pop_all()
    with contextlib.suppress(OSError):
        _remove_stale(path.parent, f".{glob.escape(name)}.{'[0-9a-f]' * 16}.partial")


def _remove_stale(folder: Path, pattern: str) -> None:
    """Remove the temporary files of writes that were killed."""
    for left in folder.glob(pattern):
        if time.time() - left.lstat().st_mtime > _STALE:
            left.unlink()


def _refuse_expansion(archive: zipfile.ZipFile) -> None:
    """Raise `ValueError` if the members are larger than the file, as in a zip bomb."""
    assert archive.fp is not None
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its arrays are compressed")
    total = sum(max(member.file_size, member.compress_size) for member in members)
    if total > os.fstat(archive.fp.fileno()).st_size:
        raise ValueError("its arrays are larger than the file")


def _text(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(f"{name}.npy").file_size > _LONGEST_TEXT:
        raise ValueError(f"its {name} is too long")
    return str(_member(archive, name, lambda spec: spec.shape == ()))


def _leaf(archive: zipfile.ZipFile, i: int, spec: ArraySpec) -> np.ndarray:
    stored = ArraySpec(_stored(spec.dtype).name, spec.shape)
    array = _member(archive, f"leaf_{i}", lambda actual: actual == stored)
    return array.view(np.dtype(spec.dtype))


def _member(
    archive: zipfile.ZipFile, name: str, fits: Callable[[ArraySpec], bool]
) -> np.ndarray:
    """One array of the archive, if `fits` accepts its dtype and shape."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has an unknown format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
        if size != info.file_size or not fits(ArraySpec(dtype.name, shape)):
            raise ValueError(f"{name} has another dtype or shape than declared")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _digest(header: str, leaves: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256(header.encode())
    for leaf in leaves:
        digest.update(bytes_of(leaf))
    return digest.hexdigest()


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, without a copy if it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _stored(dtype: str) -> np.dtype:
    """The dtype used for `dtype` in a file: NumPy cannot save bfloat16."""
    kept = np.dtype(dtype)
    if not (jnp.issubdtype(kept, jnp.number) or kept == np.bool_):
        raise ValueError(f"arrays of dtype {dtype} are not saved")
    return np.dtype(f"u{kept.itemsize}") if kept.kind == "V" else kept
