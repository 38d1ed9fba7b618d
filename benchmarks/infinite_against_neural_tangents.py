"""Infinite-width kernels and laws of trained networks beside neural-tangents.

    python -m benchmarks infinite_against_neural_tangents

The environment of neural-tangents is that of `against_neural_tangents`. Both sides take
turns, the least time counts, and the results must agree; for nth the time of an eager
call is given, too. The law is the mean and the covariance of the outputs at n/4 test
points, at ten times, from the points: `infinite.kernels` and `infinite.ensemble`, or
`predict.gradient_descent_mse_ensemble`.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .against_neural_tangents import environment, in_turns, timed, work

DEPTH = 3
TIMES = np.geomspace(1, 1e3, 10)


def points(case: dict[str, Any]) -> tuple[Any, Any]:
    """One set of points, or two; or training and test points."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(case["n"], 50)))
    if case["what"] == "law":
        return x, x[: case["n"] // 4] + 1
    return x, x[: case["n"] // 2] + 1 if case["what"] == "two sets" else None


def targets(x: Any) -> Any:
    return jnp.sin(x[:, 0])


def of_neural_tangents(case: dict[str, Any]) -> dict[str, Any]:
    import neural_tangents as nt  # pyright: ignore  # of the other environment
    from neural_tangents import stax  # pyright: ignore

    activation = {"relu": stax.Relu, "erf": stax.Erf}[case["activation"]]
    layers = [stax.serial(stax.Dense(8), activation()) for _ in range(DEPTH)]
    kernel_fn = stax.serial(*layers, stax.Dense(1))[2]

    def both(x1, x2):
        return tuple(kernel_fn(x1, x2, get=("nngp", "ntk")))

    def law(x1, x2):
        y = targets(x1)[:, None]
        predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x1, y)
        found = predict(TIMES, x2, get="ntk", compute_cov=True)
        return jnp.concatenate([found.mean, found.covariance], axis=2)

    function = jax.jit(law if case["what"] == "law" else both)
    values, least = timed(function, *points(case))
    return {"neural-tangents": {"seconds": least}, "kernel": values}


def of_nth(case: dict[str, Any]) -> dict[str, Any]:
    import nth

    options = {"activation": case["activation"], "parameterization": "ntk"}

    def both(x1, x2):
        kernels = nth.infinite.kernels(x1, x2, depth=DEPTH, **options)
        return kernels.nngp, kernels.ntk

    def law(x1, x2):
        problem = nth.Problem(x1, targets(x1), x2)
        kernels = nth.infinite.kernels(problem.x, depth=DEPTH, **options)
        found = nth.infinite.ensemble(kernels, problem, TIMES, points="test")
        assert found.covariance is not None  # for the type checker
        return jnp.concatenate([found.mean[..., None], found.covariance], axis=2)

    function = law if case["what"] == "law" else both
    values, least = timed(jax.jit(function), *points(case))
    eager = {"seconds": timed(function, *points(case))[1]}
    return {"nth": {"seconds": least}, "nth, eager": eager, "kernel": values}


def compared(case: dict[str, Any], python: Path) -> dict[str, Any]:
    """The times of both sides, and their ratio."""
    # neural-tangents loses half of the digits of an angle.
    seconds, _, difference = in_turns(__spec__.name, case, python, 1e-6)
    return {
        "case": f"{case['activation']}, n = {case['n']}, {case['what']}",
        "nth (s)": seconds["nth"],
        "nth, eager (s)": seconds["nth, eager"],
        "neural-tangents (s)": seconds["neural-tangents"],
        "neural-tangents / nth": seconds["neural-tangents"] / seconds["nth"],
        "difference": difference,
    }


def measure(small: bool) -> list[dict[str, Any]]:
    python = environment()
    return [
        compared({"activation": activation, "n": n, "what": what}, python)
        for n in ((20,) if small else (100, 300, 1000, 2000))
        for activation in ("relu", "erf")[: 1 if small else 2]
        for what in ("one set", "two sets", "law")[: 1 if small else 3]
    ]


if __name__ == "__main__":
    work({"nth": of_nth, "nt": of_neural_tangents})
