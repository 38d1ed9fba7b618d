"""The main computations on an accelerator, compared with the CPU of the machine.

    python -m benchmarks devices

For kernels, solves and discrete training, in float64 and float32: the minimum time of
three calls, after compilation, on the default device and on the CPU, and the relative
difference of each from the float64 result of the CPU. nth multiplies float32 matrices
in full precision; the lower precision of accelerators is also measured.
"""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nth

from .record import Row


def data(n: int, dtype: Any, *shape: int) -> nth.Problem:
    x_key, y_key = jax.random.split(jax.random.key(1))
    x = jax.random.normal(x_key, (n, *shape))
    x = x / jnp.sqrt(jnp.sum(x**2, axis=range(1, x.ndim), keepdims=True))
    y = jnp.sign(jax.random.normal(y_key, (n,)))
    return nth.Problem(x.astype(dtype), y.astype(dtype))


def rounded(network: Any, dtype: Any) -> Any:
    """The network in `dtype`: a key draws other numbers in float32."""
    arrays, rest = eqx.partition(network, eqx.is_array)
    return eqx.combine(jax.tree.map(lambda a: a.astype(dtype), arrays), rest)


def fully_connected(width: int, dtype: Any) -> nth.MLP:
    return rounded(nth.MLP(64, width, 2, key=jax.random.key(0)), dtype)


def convolutional(dtype: Any) -> eqx.nn.Sequential:
    keys = jax.random.split(jax.random.key(0), 3)
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(16, 16, 3, stride=2, key=keys[1]),
            eqx.nn.Lambda(lambda z: jnp.mean(jax.nn.relu(z), axis=(1, 2))),
            eqx.nn.Linear(16, "scalar", key=keys[2]),
        ]
    )
    return rounded(network, dtype)


def kernels(network: Any, problem: nth.Problem, order: int) -> Any:
    return nth.kernels(network, problem, order=order, progress=False)[order]


def dense(n: int, dtype: Any) -> Callable[[], Any]:
    problem = data(n, dtype, 64)
    computed = nth.kernels(fully_connected(256, dtype), problem, order=3)
    dynamics = nth.DenseHierarchy(computed, problem)
    return lambda: nth.integrate(dynamics, [10.0, 100.0], progress=False).train


def matrix_free(order: int, dtype: Any) -> Callable[[], Any]:
    network, problem = fully_connected(512, dtype), data(512, dtype, 64)
    dynamics = nth.MatrixFreeHierarchy(network, problem, order=order)
    return lambda: nth.integrate(dynamics, [1.0, 10.0], progress=False).train


def discrete(dtype: Any) -> Callable[[], Any]:
    network, problem = fully_connected(512, dtype), data(512, dtype, 64)
    return lambda: (
        nth.solve_discrete(
            network, problem, range(0, 101, 50), optax.sgd(0.1), order=3, progress=False
        ).train
    )


def cases(dtype: Any) -> dict[str, Callable[[], Any]]:
    wide, narrow = fully_connected(512, dtype), fully_connected(256, dtype)
    network = convolutional(dtype)
    points = {n: data(n, dtype, 64) for n in (32, 256, 2048)}
    images = data(128, dtype, 1, 16, 16)
    return {
        "K(2), MLP, n = 2048, width 512": lambda: kernels(wide, points[2048], 2),
        "K(3), MLP, n = 256, width 512": lambda: kernels(wide, points[256], 3),
        "K(4), MLP, n = 32, width 256": lambda: kernels(narrow, points[32], 4),
        "K(2), CNN, n = 128": lambda: kernels(network, images, 2),
        "dense solve, p = 3, n = 128, to t = 100": dense(128, dtype),
        "matrix-free solve, p = 3, n = 512, to t = 10": matrix_free(3, dtype),
        "matrix-free solve, p = 4, n = 512, to t = 10": matrix_free(4, dtype),
        "100 steps of SGD, p = 3, n = 512": discrete(dtype),
    }


def measured(function: Callable[[], Any]) -> tuple[float, np.ndarray]:
    result = jax.block_until_ready(function())  # compiles
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times), np.ravel(np.asarray(result, np.float64))[:10_000]


def run(name: str, small: bool) -> dict[str, tuple[float, np.ndarray]]:
    """The time and the result of each case in a setting."""
    platform, dtype, precision = SETTINGS[name]
    device = jax.devices(platform)[0]
    records = {}
    with jax.default_device(device), jax.default_matmul_precision(precision):
        every = cases(dtype)
        for case in list(every)[3:4] if small else every:
            records[case] = measured(every[case])
    return records


# Device, dtype, and precision of matrix products (`None`: that of nth).
SETTINGS = {
    "cpu float64": ("cpu", jnp.float64, None),
    "cpu float32": ("cpu", jnp.float32, None),
    "accelerator float64": (None, jnp.float64, None),
    "accelerator float32": (None, jnp.float32, None),
    "accelerator tensorfloat32": (None, jnp.float32, "tensorfloat32"),
}


def measure(small: bool) -> list[Row]:
    accelerator = jax.default_backend() != "cpu"
    chosen = [name for name in SETTINGS if accelerator or name.startswith("cpu")]
    results = {name: run(name, small) for name in chosen[: 1 if small else None]}
    return table(results)


def table(results: dict[str, dict[str, tuple[float, np.ndarray]]]) -> list[Row]:
    """Times, and relative differences from the result of the CPU in float64."""
    exact, rows = results["cpu float64"], []
    for case in exact:
        row: Row = {"case": case}
        for setting, records in results.items():
            row[f"{setting} (s)"], value = records[case]
            difference = np.linalg.norm(value - exact[case][1])
            if setting != "cpu float64":
                size = np.linalg.norm(exact[case][1])
                row[f"{setting}, difference"] = float(difference / size)
        rows.append(row)
        if (fast := row.get("accelerator float64 (s)")) is not None:
            row["cpu / accelerator, float64"] = row["cpu float64 (s)"] / fast
    return rows
