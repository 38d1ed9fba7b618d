"""Files of results, identified by a fingerprint; other files are errors."""

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .archive import ArraySpec, bytes_of, load_arrays, save_arrays
from .validation import is_traced


def fingerprint(*parts: Any) -> str:
    """A digest of pytrees: structure, and the dtype, shape and bytes of each array."""
    digest = hashlib.sha256()
    leaves, tree = jax.tree.flatten(parts)
    leaves = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in leaves]
    digest.update(_without_addresses(str(tree)).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            array = on_host(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(bytes_of(array))
        else:
            digest.update(_without_addresses(repr(leaf)).encode())
    return digest.hexdigest()


def _without_addresses(text: str) -> str:
    """`text` without addresses and names of jitted functions.

    These differ between copies of a function, and between processes.
    """
    text = re.sub(r"<PjitFunction of .*? at 0x[0-9a-f]+>>", "<PjitFunction>", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def on_host(tree: PyTree) -> PyTree:
    """`tree` as NumPy arrays, gathered if they are spread over processes."""

    def gathered(leaf: Any) -> np.ndarray:
        if is_spread(leaf):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(gathered, tree)


def is_spread(tree: PyTree) -> bool:
    """Whether another process holds a part of any array."""
    leaves = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return not all(leaf.is_fully_addressable for leaf in leaves)


def file_of_model(path: str | os.PathLike[str] | None, model: str) -> Path | None:
    """The checkpoint of one model of a comparison: run.npz becomes run-p2.npz."""
    if path is None:
        return None
    path = require_path("checkpoint", path)
    return path.with_stem(f"{path.stem}-{model}")


class Checkpoint:
    """One file, and the identity that its content must have.

    In messages `argument` is the name of the path, and `foreign` describes a file with
    another identity.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: str,
        *,
        argument: str = "checkpoint",
        foreign: str = "belongs to another solve: its network, points, targets, times, "
        "order or options differ",
    ):
        self.path = require_path(argument, path)
        self.identity = identity
        self.argument, self.foreign = argument, foreign

    def read(self, like: PyTree) -> PyTree | None:
        """The content of the file, in the structure of `like`; `None` without a file.

        **Raises:** `ValueError` if the file is damaged, belongs to something else, or
        has arrays of other shapes or dtypes than those of `like`.
        """
        leaves, tree = jax.tree.flatten(like)
        expected = [ArraySpec.of(leaf) for leaf in leaves]
        read = self.read_leaves(lambda specs: specs == expected)
        return None if read is None else jax.tree.unflatten(tree, read)

    def read_leaves(
        self, fits: Callable[[list[ArraySpec]], bool]
    ) -> list[np.ndarray] | None:
        """The arrays in the file, if `fits` accepts the header."""
        try:
            leaves = load_arrays(self.path, self.identity, fits)
        except FileNotFoundError:
            return None
        except (PermissionError, MemoryError) as error:
            raise ValueError(
                f"{self.argument}: {self.path} cannot be read: {error}."
            ) from None
        except Exception as error:  # damage can raise any exception
            raise self.damaged(str(error)) from None
        if leaves is None:
            raise ValueError(
                f"{self.argument}: {self.path} {self.foreign}. It was not changed: "
                "give another path, or move it away."
            )
        return leaves

    def damaged(self, reason: str) -> ValueError:
        """The error for a file whose content cannot be used."""
        return ValueError(
            f"{self.argument}: {self.path} is damaged, or is not a file that this "
            f"version of nth wrote ({reason}). It was not changed: give another "
            "path, or move it away."
        )

    def write(self, tree: PyTree) -> None:
        """Atomically replace the file by one with the arrays of `tree`.

        **Raises:** `ValueError` if the file cannot be written.
        """
        if is_traced(tree):
            raise ValueError(f"{self.argument}: no file can be written under jax.jit.")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        try:
            save_arrays(self.path, self.identity, leaves)
        except OSError as error:
            raise ValueError(
                f"{self.argument}: {self.path} cannot be written: {error}. Free "
                "space there, or give another path; an earlier file is unchanged."
            ) from None


def require_path(argument: str, value: Any) -> Path:
    """`value` as the path of a regular file, or of one that can be created."""
    try:
        path = Path(value)
    except TypeError:
        raise ValueError(
            f"{argument} must be the path of a file, a str or an os.PathLike; got "
            f"{value!r}."
        ) from None
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise ValueError(f"{argument}: there is no folder {folder}.") from None
        return path
    except (OSError, ValueError) as error:  # a NUL character is a ValueError
        raise ValueError(
            f"{argument} must be the path of a file; got {value!r}: {error}."
        ) from None
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{argument} must be the path of a regular file; {path} is a folder, a "
            "device or a pipe."
        )
    return path
