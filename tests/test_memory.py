"""Computations that would not fit in memory are refused before allocation."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth
from nth._network import memory as _memory

NETWORK, PROBLEM = make_network(4, 1), make_problem(4, 2)
KERNELS = nth.kernels(NETWORK, PROBLEM, order=4)
SERIES = nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=3)
INFINITE = nth.infinite.kernels(PROBLEM.x, depth=1)
TS = np.linspace(0.0, 1.0, 500)
KEY = jax.random.key(0)

CALLS = {
    "kernels": (lambda: nth.kernels(NETWORK, PROBLEM, order=4), "order: .*"),
    "contract": (
        lambda: nth.contract(NETWORK, PROBLEM, [None, None, jnp.ones(4)], order=4),
        "vectors: .* Give vectors for more of the slots",
    ),
    "project": (
        lambda: nth.project(NETWORK, PROBLEM, 4, order=4),
        "modes: .*fewer modes",
    ),
    "layer_kernels": (lambda: nth.layer_kernels(NETWORK, PROBLEM), "problem: "),
    "spectrum": (lambda: nth.spectrum(KERNELS), "kernels: .*nth.project"),
    "displacement": (
        lambda: nth.displacement(NETWORK, PROBLEM, TS),
        "(order|ts): ",
    ),
    "perturbative": (lambda: nth.perturbative(KERNELS, PROBLEM, TS), "ts: .*fewer"),
    "solve": (
        lambda: nth.solve(NETWORK, PROBLEM, TS, order=2, method="matrix-free"),
        "ts: a solve of .* Give fewer times",
    ),
    "gradient_flow": (lambda: nth.gradient_flow(NETWORK, PROBLEM, TS), "ts: a solve"),
    "kernel_along": (
        lambda: nth.kernel_along(SERIES, TS),
        r"ts: the kernel at 501 times.*nth\.spectrum_along",
    ),
    "infinite.kernels": (lambda: nth.infinite.kernels(PROBLEM.x, depth=1), "x1"),
    "infinite.ensemble": (
        lambda: nth.infinite.ensemble(INFINITE, PROBLEM, TS),
        "ts: ",
    ),
    "MLP": (lambda: nth.MLP(3, 100, 2, key=KEY), "width and depth: "),
    "catapult": (lambda: nth.catapult(0.3, 2.0, 0.1, 64, 10**4), "steps: "),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_do_not_fit_are_refused(name, monkeypatch):
    """The message has the required and the available amount, and a cure."""
    call, message_pattern = CALLS[name]
    monkeypatch.setattr(_memory, "available_bytes", lambda: 100)
    monkeypatch.setattr(_memory, "_LITTLE", 0)
    with pytest.raises(ValueError, match=message_pattern) as caught:
        call()
    message = str(caught.value)
    assert "GiB" in message
    assert "available" in message


@pytest.mark.parametrize("name", ["contract", "project", "kernel_along", "solve"])
def test_calls_that_fit_are_not_refused(name, monkeypatch):
    """The estimate is at most a few times the result and the parameters."""
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2**20)
    monkeypatch.setattr(_memory, "_LITTLE", 0)
    CALLS[name][0]()


PEAK = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
import nth
n = int(sys.argv[1])
rng = np.random.default_rng(0)
square = rng.normal(size=(n, n)) / n**0.5
tensors = (rng.normal(size=n), np.eye(n) + square @ square.T)
tensors += (rng.normal(size=(n,) * 3) / n, rng.normal(size=(n,) * 4) / n**2)
kernels = nth.Kernels(tuple(map(jnp.asarray, tensors)))
del tensors
problem = nth.Problem(jnp.ones((n, 2)), jnp.ones(n))
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
solved = nth.perturbative(kernels, problem, [1.0])
assert bool(jnp.all(jnp.isfinite(solved.train)))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / (8 * n**4))
"""


def test_memory_of_the_perturbative_correction_is_near_that_of_its_kernels():
    """Peak memory in units of K(4); it was 40 when all modes were broadcast."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, "56"], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 6, run.stdout


GROUP_FILES = {
    "unified": ("0::/box", "", ("memory.max", "memory.current"), "inactive_file"),
    "legacy": (
        "4:memory:/box",
        "memory",
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", GROUP_FILES)
@pytest.mark.parametrize("inside", [False, True])
def test_available_memory_respects_the_limits_of_control_groups(
    version, inside, monkeypatch, tmp_path
):
    """The minimum over all groups of the process, also within a container, whose group
    is at the mount. The file cache counts as available."""
    line, folder, (limit, usage), cache = GROUP_FILES[version]
    root = tmp_path / "mount" / folder
    (root / "box").mkdir(parents=True)

    def write(group, most, used, cached):
        (group / limit).write_text(f"{most}\n")
        (group / usage).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 7\n{cache} {cached}\nshmem 1\n")

    write(root if inside else root / "box", 5000, 3000, 400)
    (tmp_path / "cgroup").write_text(f"1:cpu:/other\n{line}\n")
    monkeypatch.setattr(_memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_memory, "_MOUNT", tmp_path / "mount")
    assert _memory.available_bytes() == 2400
    if version == "unified":
        write(root, "max", 1, 0)
        assert (_memory.available_bytes() == 2400) is not inside
    monkeypatch.setattr(_memory, "_GROUPS", tmp_path / "none")  # not Linux
    assert _memory.available_bytes() > 2**20
