"""Kernels at infinite width, by nth and by neural-tangents, both compiled.

    python -m benchmarks infinite_against_neural_tangents

The environment of neural-tangents is that of `against_neural_tangents`. Both sides take
turns, the least time counts, and the kernels must agree; for nth the time of an eager
call is given, too.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .against_neural_tangents import environment, in_turns, timed, work

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
    seconds, _, difference = in_turns(__spec__.name, case, python, 1e-6)
    sets = "one set" if case["sets"] == 1 else "two sets"
    return {
        "case": f"{case['activation']}, n = {case['n']}, {sets}",
        "nth (s)": seconds["nth"],
        "nth, eager (s)": seconds["nth, eager"],
        "neural-tangents (s)": seconds["neural-tangents"],
        "neural-tangents / nth": seconds["neural-tangents"] / seconds["nth"],
        "difference": difference,
    }


def measure(small: bool) -> list[dict[str, Any]]:
    python = environment()
    return [
        compared({"activation": activation, "n": n, "sets": sets}, python)
        for n in ((20,) if small else (100, 300, 1000, 2000))
        for activation in ("relu", "erf")[: 1 if small else 2]
        for sets in (1, 2)[: 1 if small else 2]
    ]


if __name__ == "__main__":
    work({"nth": of_nth, "nt": of_neural_tangents})
