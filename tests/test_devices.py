"""Points sharded over devices and processes: results do not depend on the sharding.

The number of devices is fixed when JAX starts, so each test starts a new process.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nth

ROOT = Path(nth.__file__).parents[1]
TIME_LIMIT = 180

START = """
import json, os, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
"""

# Eight training and four test points, not sharded.
PROBLEM = """
import nth

rng = np.random.default_rng(0)
x = rng.normal(size=(12, 3))
y = np.sin(3 * x[:8, 0])
network = nth.MLP(3, 5, 1, key=jax.random.key(0))
ts = [0.0, 1.0, 2.5]
alone = nth.Problem(x[:8], y, x[8:])


def distance(one, other):
    pairs = ((one.train, other.train), (one.test, other.test), (one.loss, other.loss))
    return max(float(np.max(np.abs(whole(a) - whole(b)))) for a, b in pairs)
"""

ONE_PROCESS = """
def mesh(kind):
    return jax.make_mesh((4,), ("points",), axis_types=(kind,))


def share(mesh):
    rows = NamedSharding(mesh, PartitionSpec("points"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    parts = [jax.device_put(a, rows) for a in (x[:8], y, x[8:])]
    return jax.device_put(network, everywhere), nth.Problem(*parts)


whole = np.asarray
"""

FOUR_DEVICES = """
report = {"devices": jax.device_count()}
shared_network, shared = share(mesh(AxisType.Auto))
one = nth.solve(network, alone, ts, order=2, method="matrix-free")
many = nth.solve(shared_network, shared, ts, order=2, method="matrix-free")
report["matrix-free"] = distance(one, many)
report["devices of outputs"] = len(many.train.sharding.device_set)
parts = many.train.addressable_shards
report["points on each"] = sorted({part.data.shape[1] for part in parts})
dynamics = nth.MatrixFreeHierarchy(shared_network, shared, order=2, block_size=4)
blocks = nth.integrate(dynamics, ts)
report["in blocks"] = distance(one, blocks)
predicted = dynamics.predict(blocks.state, shared.x_test)
report["predict"] = float(jnp.max(jnp.abs(predicted - many.test[-1])))
explicit_network, explicit = share(mesh(AxisType.Explicit))
one = nth.gradient_flow(network, alone, ts)
many = nth.gradient_flow(explicit_network, explicit, ts)
report["gradient flow, explicit axes"] = distance(one, many)
report["devices, explicit axes"] = len(many.train.sharding.device_set)
"""

WORK = """
def compiled(network, problem, block_size):
    d = nth.MatrixFreeHierarchy(network, problem, order=3, block_size=block_size)
    field = jax.jit(lambda d, state: d.vector_field(0.0, state, None))
    return field.lower(d, d.initial_state()).compile()


work = []
for block_size in (8, 4):
    one = compiled(network, alone, block_size)
    many = compiled(*share(mesh(AxisType.Auto)), block_size)
    placed = jax.tree.leaves(many.input_shardings[0])
    names = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    work.append({
        "devices": sorted({len(s.device_set) for s in placed}),
        "inputs cut by points": sum(s.spec == PartitionSpec("points") for s in placed),
        "sends": [name for name in names if f" {name}(" in many.as_text()],
        "work": many.cost_analysis()["flops"] / one.cost_analysis()["flops"],
    })
print(json.dumps([report, work]))
"""

TWO_PROCESSES = """
from jax.experimental import multihost_utils

process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
"""

TWO_HOSTS = """
mesh = jax.make_mesh((jax.device_count(),), ("points",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("points"))


def share(array):
    part = np.split(array, 2)[process]  # what this host holds
    return jax.make_array_from_process_local_data(rows, part)


def whole(array):
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def at_every_time(solution):
    return np.concatenate([whole(solution.train), whole(solution.test)], axis=1)


shared = nth.Problem(share(x[:8]), share(y), share(x[8:]))
report = {"devices": jax.device_count(), "of this process": jax.local_device_count()}
try:
    nth.Problem(share(np.where(x[:8] == x[0, 0], np.nan, x[:8])), share(y))
except ValueError as error:
    report["NaN with process 0 alone"] = str(error)
"""

FROM_A_FILE = """
trained = jax.device_put(network, NamedSharding(mesh, PartitionSpec()))
solve_options = dict(order=2, method="matrix-free")
last = nth.solve(trained, shared, ts[-1:], **solve_options)
report["points here"] = [s.data.shape[1] for s in last.train.addressable_shards]
options = dict(checkpoint=os.path.join(folder, "run.npz"), **solve_options)
solutions = [at_every_time(nth.solve(trained, shared, ts, **options))]
solutions.append(at_every_time(last))
from nth._integrate import integrate as module

solve = module.solve_piece


def no_solve(dynamics, state, *arguments, **options):
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in leaves), "a solve"
    return solve(dynamics, state, *arguments, **options)


module.solve_piece = no_solve  # from here on results come from the file
again = nth.solve(trained, shared, ts, **options)
report["from the file"] = float(np.max(np.abs(at_every_time(again) - solutions[0])))
module.solve_piece = solve
if process == 0:
    at_end = nth.solve(network, alone, ts[-1:], **solve_options)
    solve_options["checkpoint"] = os.path.join(folder, "a.npz")
    expected = [nth.solve(network, alone, ts, **solve_options), at_end]
    pairs = zip(map(at_every_time, expected), solutions)
    report["apart"] = [float(np.max(np.abs(a - b))) for a, b in pairs]
print(json.dumps(report))
"""


def run(*scripts: str, devices: int = 1, processes: int = 1, folder: Path) -> list[Any]:
    """The JSON that the scripts print on the last line of each process."""
    flags = os.environ.get("XLA_FLAGS", "")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", "\n".join(scripts)]
    started = [
        subprocess.Popen(
            [*command, str(process), port, str(folder)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        printed = [child.communicate(timeout=TIME_LIMIT) for child in started]
    finally:
        for child in started:
            child.kill()
    for child, (_, errors) in zip(started, printed, strict=True):
        assert child.returncode == 0, errors[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in printed]


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    scripts = (START, PROBLEM, ONE_PROCESS, FOUR_DEVICES, WORK)
    return run(*scripts, devices=4, folder=tmp_path_factory.mktemp("four"))[0]


def test_results_on_four_devices_equal_those_on_one(four_devices: list[Any]) -> None:
    """Results do not depend on sharding, with either kind of mesh axis."""
    report = dict(four_devices[0])
    assert report.pop("devices") == report.pop("devices of outputs") == 4
    assert report.pop("points on each") == [2]
    assert report.pop("devices, explicit axes") == 4
    assert len(report) == 4
    assert max(report.values()) < 1e-10, report


def test_work_is_divided_among_devices(four_devices: list[Any]) -> None:
    """Devices exchange sums over points only, also if computed in blocks."""
    for block in four_devices[1]:
        assert block["devices"] == [4]
        assert block["inputs cut by points"] == 2  # x_train and y_train
        assert block["sends"] == ["all-reduce"]
        assert block["work"] < 0.5


def test_results_on_two_processes_equal_those_on_one(tmp_path: Path) -> None:
    """Each process holds half of the points; results are those of one process."""
    scripts = (START, TWO_PROCESSES, PROBLEM, TWO_HOSTS, FROM_A_FILE)
    report = run(*scripts, processes=2, folder=tmp_path)
    for process in report:
        assert process.pop("devices") == 2 * process.pop("of this process")
        assert process.pop("points here") == [4]
        assert "x_train has NaN" in process.pop("NaN with process 0 alone")
        assert process.pop("from the file") == 0
    assert max(report[0]["apart"]) < 1e-10
