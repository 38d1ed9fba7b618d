"""Memory: the amount available, array sizes, and errors if arrays do not fit."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import psutil
from jaxtyping import PyTree

from .._custom_types import Inputs, Params
from .base import OutputFunction

# The control groups of this process, and the files of each: its limit, its usage, and
# the file cache included in that usage, which Linux frees when memory is needed. See
# cgroups(7); psutil reports the memory of the machine, not that of a container.
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")

# Bytes that every machine has. Reading how many are available takes as long as forming
# kernels of this size.
_LITTLE = 2**22


def available_bytes() -> int:
    """Bytes available on the default device; on a CPU, within a container's limit."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return min([psutil.virtual_memory().available, *_group_allowances()])


def _group_allowances() -> Iterator[int]:
    """Bytes still available to each limited control group of this process."""
    groups = _GROUPS.read_text() if _GROUPS.exists() else ""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _MOUNT / controllers
        files = _VERSION_1 if controllers else _VERSION_2
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _allowance(folder, *files)


def _allowance(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes still available to the control group of `folder`; empty if unlimited."""
    try:
        maximum = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        counts = (folder / "memory.stat").read_text().split()
    except OSError:  # the root has no such files, or they are not visible here
        return []
    if maximum == "max":
        return []
    freed = int(counts[counts.index(cache) + 1]) if cache in counts else 0
    return [max(0, int(maximum) - used + freed)]


def require_memory(argument: str, purpose: str, needed: int, cure: str) -> None:
    """Raise `ValueError` if more bytes are needed for `purpose` than are available.

    `cure` is a sentence that tells the user what to change.
    """
    if needed <= _LITTLE:
        return
    available = available_bytes()
    if needed > available:
        raise ValueError(
            f"{argument}: {purpose} takes {_size(needed)}, and {_size(available)} are "
            f"available. {cure}"
        )


def _size(count: int) -> str:
    gib = count / 2**30
    return f"{gib:,.1f} GiB" if gib < 1e6 else f"{gib:.1e} GiB"


def tree_bytes(tree: PyTree) -> int:
    """Bytes of the arrays, or of the `jax.ShapeDtypeStruct`s, in a pytree."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def activation_bytes(apply: OutputFunction, params: Params, x: Any) -> int:
    """Bytes that reverse mode stores for each additional point; `x` is one point."""

    def kept(points: int) -> int:
        xs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((points, *leaf.shape), leaf.dtype), x
        )

        def residuals(params: Params, xs: Inputs) -> object:
            return jax.vjp(partial(apply.over, xs=xs), params)[1]

        return tree_bytes(eqx.filter_eval_shape(residuals, params, xs))

    return max(1, kept(2) - kept(1))
