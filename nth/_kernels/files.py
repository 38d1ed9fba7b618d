"""K⁽²⁾ in a file, for more points than memory has room for."""

import os
from collections.abc import Callable
from typing import Any, BinaryIO

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._internal.archive import replace_file
from .._internal.checkpoint import require_path
from .._internal.precision import full_precision
from .._internal.validation import is_traced, require_bool, require_integer
from .._network.base import trainable
from .._problem.problem import Problem
from .evaluation import Points, points_of, require_finite_kernels
from .tiles import tile_points, tiles


@full_precision
def save_ntk(
    network: Callable[..., Any],
    problem: Problem,
    path: str | os.PathLike[str],
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    block_size: int | None = None,
    progress: bool = True,
) -> np.memmap:
    """Write the NTK to a file as it is computed, without holding it in memory.

    The file has the format of NumPy (`.npy`), and `numpy.load(path, mmap_mode="r")`
    opens it in any program. It appears once the kernel is complete; an earlier file at
    `path` is replaced. Unlike that of [`nth.Kernels.save`][], it does not know of what
    network it is.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
    - `path`: the file, in a folder that exists.
    - `block_size`: how many slots a tile of the kernel has on a side. If left out, the
        gradients of two tiles take at most 256 MiB.
    - `progress`: whether to show a bar once the work has lasted for 5 seconds.

    **Returns:** K⁽²⁾, of shape `(m, *out, n, *out)`, as a read-only `numpy.memmap` of
    the file: parts of it are read when they are used.

    **Raises:** `ValueError` if the network does not fit, the kernel is not finite, or
    the file cannot be written, for instance because it does not fit on the disk.
    """
    path = require_path("path", path)
    require_bool("progress", progress)
    if is_traced(network, problem):
        raise ValueError("the NTK cannot be written to a file under jax.jit.")
    if block_size is not None:
        block_size = require_integer("block_size", block_size, 1)
    points = points_of(trainable(network, problem, filter_spec, learning_rates))
    if np.dtype(points.output.dtype).kind != "f":
        raise ValueError(
            f"network has outputs of dtype {points.output.dtype}, which the format "
            "of NumPy does not have: use float32 or float64."
        )
    try:
        replace_file(path, lambda file: _write(file, points, block_size, progress))
    except OSError as error:
        raise ValueError(
            f"path: {path} cannot be written: {error}. Free space there, or give "
            "another path; an earlier file is unchanged."
        ) from None
    return np.load(path, mmap_mode="r")


def _write(
    file: BinaryIO, points: Points, block_size: int | None, progress: bool
) -> None:
    output, slot = points.output, (points.n_train, *points.output.shape)
    dtype = np.dtype(output.dtype)
    shape = (points.n_rows // output.size, *output.shape, *slot)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    start = file.tell()
    _allocate(file, start + points.n_rows * points.n_slots * dtype.itemsize)
    whole = (points.n_rows, points.n_slots)
    kernel = np.memmap(file.name, dtype, "r+", start, whole)
    for tile in tiles(points, tile_points(points, block_size), progress):
        block = np.asarray(tile.block)
        # No K(1) here: a row of zeros is in its place.
        zeros = jnp.zeros(len(tile.block), tile.block.dtype)
        require_finite_kernels((zeros, tile.block), points)
        rows = slice(tile.row, tile.row + block.shape[0])
        columns = slice(tile.column, tile.column + block.shape[1])
        kernel[rows, columns] = block
        if tile.mirrored:
            kernel[columns, rows] = block.T
    kernel.flush()


def _allocate(file: BinaryIO, size: int) -> None:
    """Extend `file` to `size` bytes, which are reserved where the system can: writing
    to a memory map on a full disk ends the process."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
