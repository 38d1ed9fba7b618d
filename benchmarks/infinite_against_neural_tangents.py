"""Kernels at infinite width, by nth and by neural-tangents, both compiled.

    python benchmarks/infinite_against_neural_tangents.py [--small]
        [--environment FOLDER] [--output FILE]

The environment of neural-tangents is that of `against_neural_tangents.py`. Both sides
take turns, and the least time counts; for nth that of an eager call is given, too. The
script checks that the kernels agree, prints the ratios, and writes them to FILE.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from against_neural_tangents import environment, in_turns, options_of, timed

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
    return {"neural-tangents": {"seconds": least}, "kernel": values}


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
    eager = {"seconds": timed(both, x1, x2)[1]}
    return {"nth": {"seconds": least}, "nth, eager": eager, "kernel": values}


def compared(case: dict[str, Any], python: Path) -> dict[str, Any]:
    """The times of both sides, and their ratio."""
    # neural-tangents loses half of the digits of an angle.
    seconds, _, difference = in_turns(__file__, case, python, 1e-6)
    ratio = seconds["neural-tangents"] / seconds["nth"]
    return {**case, "seconds": seconds, "difference": difference, "ratio": ratio}


def main() -> None:
    options = options_of("infinite.json", {"nth": of_nth, "nt": of_neural_tangents})
    if options is None:
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
