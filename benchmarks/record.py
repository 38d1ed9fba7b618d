"""Records of benchmarks: rows of a table, and the machine that they were run on."""

import datetime
import importlib
import inspect
import os
import platform
import resource
import subprocess
import time
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import nth

# A row has a `case` and numbers. Their names end with a unit in parentheses; names
# with a slash are ratios.
Row = dict[str, Any]

_PACKAGES = ("jax", "equinox", "diffrax", "optax", "numpy", "scipy")
_ROOT = Path(__file__).parent.parent


def measured(name: str, small: bool) -> dict[str, Any]:
    """The record of a benchmark: `benchmarks.NAME.measure(small)` returns its rows."""
    jax.config.update("jax_enable_x64", True)  # arrays of the module are made with it
    module = importlib.import_module(f"benchmarks.{name}")
    start = time.perf_counter()
    with warnings.catch_warnings():
        for kind in (nth.AccuracyWarning, nth.WindowWarning):
            warnings.simplefilter("ignore", kind)
        rows: list[Row] = module.measure(small)
    seconds = time.perf_counter() - start
    return {
        "title": (inspect.getdoc(module) or "").partition("\n")[0],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "small": small,
        "seconds": round(seconds),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }


def durations(command: list[str], folder: str) -> tuple[Row, str]:
    """Wall time and CPU time of a program, and what it printed."""
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Other programs on the machine lengthen the wall time alone.
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"time (s)": seconds, "CPU time (s)": cpu}, ran.stdout


def versions() -> dict[str, str]:
    packages = {package: version(package) for package in _PACKAGES}
    # Not `nth.__version__`: a checkout may be newer than what is installed.
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return {"nth": project["version"], "python": platform.python_version(), **packages}


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
    }


def _processor() -> str:
    """The name of the processor; the architecture where no name is known."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
