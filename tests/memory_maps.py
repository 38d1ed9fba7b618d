"""A limit of the system that long processes with many compiled functions reach."""

import gc
from pathlib import Path

import jax

# Each compiled function holds memory maps, of which Linux allows 65,530 per process: a
# process that keeps the functions of hundreds of tests crashes in the compiler.
_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 50_000


def clear_caches_of_many_maps() -> None:
    """Removes the compiled functions if the process has too many maps."""
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
