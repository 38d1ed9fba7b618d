"""Results of solves of random problems with the default options.

    python -m benchmarks stress

Random architectures (widths, depths, activations, losses, parameterizations, numbers of
points and outputs), each with several initializations, targets and last times up to
1e6; the trained network and levels 2 to 5 in both forms. Counts the results and the
faults: undocumented exceptions, NaN with a result that does not indicate it, and solves
of more than a minute.
"""

import collections
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nth
from nth._solution.results import name_of_result

from .record import Row

SEEDS = 15
ACTIVATIONS = ("tanh", "erf", "relu", "gelu", "sin", "softplus")
LOSSES = {
    "squared": nth.SquaredError(),
    "logistic": nth.LogisticLoss(),
    "softmax": nth.SoftmaxCrossEntropy(),
    "hinge": nth.CustomLoss(lambda f, y: jnp.sum(jnp.maximum(0.0, 1 - y * f))),
    "absolute": nth.CustomLoss(lambda f, y: jnp.sum(jnp.abs(f - y))),
}


def architecture(number: int) -> dict[str, Any]:
    """The shapes and functions of a group of problems, which are compiled once."""
    draw = np.random.default_rng(number)
    loss = str(draw.choice(list(LOSSES), p=[0.4, 0.2, 0.2, 0.1, 0.1]))
    return {
        "width": int(2 ** draw.integers(2, 9)),
        "depth": int(draw.integers(1, 4)),
        "activation": str(draw.choice(ACTIVATIONS)),
        "parameterization": str(draw.choice(["nth", "ntk", "standard"])),
        "use_bias": bool(draw.integers(2)),
        "n": int(draw.integers(2, 9)),
        "loss": loss,
        "out_size": 3 if loss == "softmax" else "scalar",
        "model": str(
            draw.choice(["flow", "dense-2", "dense-3", "dense-4"])
            if draw.random() < 0.6
            else draw.choice(["series-2", "series-3", "series-4", "series-5"])
        ),
    }


def problem_of(
    group: dict[str, Any], seed: int
) -> tuple[Any, nth.Problem, list[float]]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(group["n"] + 2, 5))
    if draw.random() < 0.5:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    if draw.random() < 0.2:
        x[1] = x[0]  # a duplicate point
    y = draw.normal(size=group["n"])
    if group["loss"] in ("logistic", "hinge"):
        y = np.sign(y)
    if group["loss"] == "softmax":
        y = draw.integers(3, size=group["n"])
    sizes = ("width", "depth", "activation", "parameterization", "use_bias", "out_size")
    network = nth.MLP(
        5, key=jax.random.key(seed), **{name: group[name] for name in sizes}
    )
    loss = LOSSES[group["loss"]]
    problem = nth.Problem(x[:-2], y, x[-2:], loss=loss)
    last = 10.0 ** draw.uniform(0, 6)
    return network, problem, [last / 100, last / 10, last]


def dynamics_of(
    model: str, network: nth.MLP, problem: nth.Problem
) -> nth.AbstractDynamics:
    if model == "flow":
        return nth.GradientFlow(network, problem)
    form, order = model.split("-")
    if form == "series":
        return nth.MatrixFreeHierarchy(network, problem, order=int(order))
    kernels = nth.kernels(network, problem, order=int(order))
    return nth.DenseHierarchy(kernels, problem)


def run(group: dict[str, Any], seed: int) -> dict[str, Any]:
    """One solve: its result, steps, time and faults."""
    record: dict[str, Any] = {**group, "seed": seed}
    begin = time.perf_counter()
    try:
        network, problem, ts = problem_of(group, seed)
        record["last"] = ts[-1]
        solution = nth.integrate(
            dynamics_of(group["model"], network, problem),
            ts,
            throw=False,
            progress=False,
            max_steps=30_000,
        )
    except Exception as error:
        return {**record, "result": "raised", "error": repr(error)[:300]}
    ended = name_of_result(solution.result)
    finite = bool(np.all(np.isfinite(solution.train)))
    silent = not finite and ended in ("successful", "left_window")
    return {
        **record,
        "result": "silent NaN" if silent else ended,
        "solver": solution.stats["solver"],
        "steps": int(solution.stats["num_steps"]),
        "valid_until": float(solution.valid_until),
        "seconds": time.perf_counter() - begin,
    }


def run_all(problems: int, path: Path) -> list[dict[str, Any]]:
    """The records of `problems` problems; those in the file are not run again."""
    warnings.simplefilter("ignore")
    records = json.loads(path.read_text()) if path.exists() else []
    done = {(r["group"], r["seed"]) for r in records}
    for number in range(-(-problems // SEEDS)):
        group = architecture(number)
        for seed in range(min(SEEDS, problems)):
            if (number, seed) not in done:
                record = run(group, SEEDS * number + seed)
                records.append({"group": number, **record, "seed": seed})
        path.write_text(json.dumps(records, indent=1))
        jax.clear_caches()
    return records


def measure(small: bool) -> list[Row]:
    """How the solves of each model end. Resumes from `stress.json`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder if small else "") / "stress.json"
        records = run_all(2 if small else 1005, path)
    return [row(name, records, belongs) for name, belongs in KINDS.items()]


def row(name: str, records: list[Any], belongs: Callable[[str], bool]) -> Row:
    chosen = [r for r in records if belongs(r["model"])]
    results = collections.Counter(r["result"] for r in chosen)
    slow = sum(r.get("seconds", 0) > 60 for r in chosen)
    return {"case": name, "solves": len(chosen), **results, "over a minute": slow}


KINDS: dict[str, Callable[[str], bool]] = {
    "trained network": lambda model: model == "flow",
    "dense, level 2": lambda model: model == "dense-2",
    "dense, levels 3 and 4": lambda model: model in ("dense-3", "dense-4"),
    "matrix-free, levels 2 to 5": lambda model: model.startswith("series"),
}
