"""Files of results: one file, replaced atomically, refused if damaged or foreign.

The file is an npz archive, whose parts carry checksums. Beside the arrays it holds a
fingerprint of what they were made of, such as network, points, times and options.
"""

import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def fingerprint(*parts: Any) -> str:
    """A digest of pytrees: structure, and the dtype, shape and bytes of each array."""
    digest = hashlib.sha256()
    leaves, tree = jax.tree.flatten(parts)
    # Functions print with their address, which another process does not share.
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", str(tree)).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            array = on_host(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        else:
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(leaf)).encode())
    return digest.hexdigest()


def on_host(tree: PyTree) -> PyTree:
    """`tree` as NumPy arrays, gathered where they are spread over processes."""

    def gathered(leaf: Any) -> np.ndarray:
        if is_spread(leaf):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(gathered, tree)


def is_spread(tree: PyTree) -> bool:
    """Whether any array lies in part with another process."""
    leaves = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return not all(leaf.is_fully_addressable for leaf in leaves)


_OF_A_SOLVE = (
    "belongs to another solve: its network, points, targets, times, order or options "
    "differ"
)


class Checkpoint:
    """One file, and the identity that its content must have.

    `argument` is what a message calls the path, and `foreign` what it says of a file
    with another identity.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: str,
        *,
        argument: str = "checkpoint",
        foreign: str = _OF_A_SOLVE,
    ):
        self.path = Path(path)
        self.identity = identity
        self.argument, self.foreign = argument, foreign
        if not self.path.parent.is_dir():
            raise ValueError(f"{argument}: there is no folder {self.path.parent}.")

    def read(self, like: PyTree) -> PyTree | None:
        """What was written last, in the structure of `like`; `None` if nothing was.

        **Raises:** `ValueError` for a damaged file or a foreign one.
        """
        found = self.read_leaves()
        if found is None:
            return None
        leaves, tree = jax.tree.flatten(like)
        if len(found) != len(leaves):
            raise self._is_foreign()
        return jax.tree.unflatten(tree, found)

    def read_leaves(self) -> list[np.ndarray] | None:
        """The same, whatever its structure."""
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                if wrong := archive.testzip():  # numpy may stop short of a checksum
                    raise zipfile.BadZipFile(f"bad checksum of {wrong}")
            with np.load(self.path, allow_pickle=False) as file:
                identity = str(file["identity"])
                found = [file[f"leaf_{i}"] for i in range(len(file.files) - 1)]
        except Exception as error:  # what damage can raise has no end
            raise ValueError(
                f"{self.argument}: {self.path} is damaged, or no file of nth's "
                f"({error}). It was left as it is: move it away to begin anew."
            ) from None
        if identity != self.identity:
            raise self._is_foreign()
        return found

    def _is_foreign(self) -> ValueError:
        return ValueError(
            f"{self.argument}: {self.path} {self.foreign}. It was left as it is: give "
            "another path, or move it away."
        )

    def write(self, tree: PyTree) -> None:
        """Put `tree` in the file's place: whole, or not at all."""
        arrays = {f"leaf_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
        partial = self.path.with_name(f".{self.path.name}.partial")
        with open(partial, "wb") as file:
            np.savez(file, identity=self.identity, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
