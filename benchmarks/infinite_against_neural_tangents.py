"""Kernels at infinite width, by nth and by neural-tangents, both compiled.

    python benchmarks/infinite_against_neural_tangents.py [--small]
        [--environment FOLDER] [--output FILE]

The environment of neural-tangents is that of `against_neural_tangents.py`. Both sides
take turns, and the least time counts; for nth that of an eager call is given, too. The
script checks that the kernels agree, prints the ratios, and writes them to FILE.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from against_neural_tangents import TURNS, environment, timed

DEPTH = 3


def points(case: dict[str, Any]) -> tuple[Any, Any]:
    """One set of points, or two."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(case["n"], 50)))
    return x, jnp.asarray(x[: case["n"] // 2] + 1) if case["sets"] == 2 else None


def of_neural_tangents(case: dict[str, Any]) -> dict[str, Any]:
    from neural_tangents import stax  # pyright: ignore  # of the other environment

    activation = {"relu": stax.Relu, "erf": stax.Erf}[case["activation"]]
    layers = [stax.serial(stax.Dense(8), activation()) for _ in range(DEPTH)]
    kernel_fn = stax.serial(*layers, stax.Dense(1))[2]
    x1, x2 = points(case)
    both = jax.jit(lambda x1, x2: tuple(kernel_fn(x1, x2, get=("nngp", "ntk"))))
    values, least = timed(both, x1, x2)
    return {"neural-tangents": least, "kernels": values}


def of_nth(case: dict[str, Any]) -> dict[str, Any]:
    import nth

    def both(x1, x2):
        kernels = nth.infinite.kernels(
            x1,
            x2,
            depth=DEPTH,
            activation=case["activation"],
            parameterization="ntk",
        )
        return kernels.nngp, kernels.ntk

    x1, x2 = points(case)
    values, least = timed(jax.jit(both), x1, x2)
    return {"nth": least, "nth, eager": timed(both, x1, x2)[1], "kernels": values}


def worker(side: str, case: dict[str, Any], folder: Path) -> None:
    results = {"nth": of_nth, "nt": of_neural_tangents}[side](case)
    np.save(folder / f"{side}.npy", np.asarray(results.pop("kernels")))
    (folder / f"{side}.json").write_text(json.dumps(results))


def compared(case: dict[str, Any], python: Path) -> dict[str, Any]:
    """The times of both sides, which take turns."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(TURNS):
            for side, interpreter in (("nt", python), ("nth", sys.executable)):
                task = ["--worker", side, json.dumps(case), folder]
                subprocess.run([interpreter, __file__, *task], check=True)
                found = json.loads((Path(folder) / f"{side}.json").read_text())
                for name, least in found.items():
                    seconds[name] = min(least, seconds.get(name, np.inf))
        ours, theirs = (np.load(Path(folder) / f"{s}.npy") for s in ("nth", "nt"))
    difference = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not difference < 1e-6:  # neural-tangents loses half of the digits of an angle
        raise SystemExit(f"{case}: kernels differ by {difference:.1e}.")
    ratio = seconds["neural-tangents"] / seconds["nth"]
    return {**case, "seconds": seconds, "difference": difference, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    default = Path(tempfile.gettempdir()) / "nth-neural-tangents"
    parser.add_argument("--environment", type=Path, default=default)
    parser.add_argument("--output", type=Path, default="infinite.json")
    parser.add_argument("--worker", nargs=3)
    options = parser.parse_args()
    if options.worker:
        side, case, folder = options.worker
        worker(side, json.loads(case), Path(folder))
        return
    python, results = environment(options.environment), []
    for n in (20,) if options.small else (100, 300, 1000, 2000):
        for activation in ("relu", "erf"):
            for sets in (1, 2):
                case = {"activation": activation, "n": n, "sets": sets}
                results.append(result := compared(case, python))
                print(
                    f"{activation}, n = {n}, {sets} sets: nth "
                    f"{result['seconds']['nth']:.4f} s (eager "
                    f"{result['seconds']['nth, eager']:.4f}); neural-tangents "
                    f"{result['ratio']:.2f} times as long; largest relative "
                    f"difference {result['difference']:.0e}",
                    flush=True,
                )
                options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
