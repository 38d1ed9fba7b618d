"""Assertions for test suites and validation scripts.

They raise an `AssertionError` that says by how much a claim is missed.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ._compare.comparison import Comparison
from ._internal.validation import (
    require_concrete,
    require_instance,
    require_name,
    require_positive,
)
from ._solution.solution import Solution

_SOLUTION = "that of nth.solve or nth.solve_discrete"
_COMPARISON = "that of nth.compare"


def assert_close(
    outputs: Any,
    prediction: Solution,
    *,
    points: Literal["train", "test"] = "train",
    index: int = -1,
    margin: float = 3.0,
    atol: float = 1e-5,
) -> None:
    """Raise unless outputs are as close to a prediction as it estimates itself to be.

    The root-mean-square distance of `outputs` from the prediction must be at most
    `margin` times its `error_estimate`, plus `atol`. So a training loop is checked
    against a prediction with no tolerance to tune: see the page "Use in a test suite".

    **Arguments:**

    - `outputs`: the outputs to check, of shape `(n, *out)` for training points or
        `(q, *out)` for test points.
    - `prediction`: an [`nth.Solution`][]. One of [`nth.train`][] or
        [`nth.gradient_flow`][] has no estimate: the distance is then at most `atol`.
    - `points`: which outputs of the prediction, `"train"` or `"test"`.
    - `index`: which of the times of the prediction; the last one by default.
    - `margin`: a factor above 0. The estimate is not a bound.
    - `atol`: what rounding may contribute; above 0.

    **Raises:** `AssertionError` if the distance is larger, or not finite;
    `ValueError` for outputs of another shape, an index that does not exist, a time
    after the prediction's `valid_until`, or under `jax.jit`.

    ```python
    import jax
    import jax.numpy as jnp
    import nth

    x = jnp.array([[0.6, 0.8], [1.0, 0.0]])
    problem = nth.Problem(x, jnp.array([1.0, -1.0]))
    network = nth.MLP(2, width=32, depth=1, key=jax.random.key(0))
    prediction = nth.solve(network, problem, [1.0], order=3)
    trained = nth.gradient_flow(network, problem, [1.0])  # or your own program
    nth.testing.assert_close(trained.train[-1], prediction)
    ```
    """
    require_instance("prediction", prediction, Solution, _SOLUTION)
    require_concrete("outputs", (outputs, prediction.loss), "testing.assert_close")
    points = require_name("points", points, ("train", "test"))
    margin, atol = require_positive("margin", margin), require_positive("atol", atol)
    i = _index(index, len(prediction.ts))
    expected = np.asarray(getattr(prediction, points))[i]
    actual = np.asarray(outputs)
    if actual.shape != expected.shape or actual.size == 0:
        raise ValueError(
            f"outputs has shape {actual.shape}; the prediction has {expected.shape} "
            f"for {points} points: give one entry for each of at least one output."
        )
    time, until = float(prediction.ts[i]), float(prediction.valid_until)
    if time > until:
        raise ValueError(
            f"prediction is not valid at {time:.4g}, after its valid_until "
            f"{until:.4g}: give an earlier index, or a prediction of higher order."
        )
    distance = float(np.sqrt(np.mean((actual - expected) ** 2)))
    estimate = float(jnp.nan_to_num(prediction.error_estimate[i]))
    limit = margin * estimate + atol
    if not distance <= limit:  # NaN is an error, too
        raise AssertionError(
            f"the outputs on {points} points are {distance:.2e} from the prediction of "
            f"the {prediction.label} at {time:.4g} (root mean square), more than "
            f"{margin:g} times its estimated error {estimate:.2e} plus {atol:g}."
        )


def assert_improves(
    comparison: Comparison,
    order: int | str,
    over: int | str,
    *,
    points: Literal["train", "test"] = "train",
    index: int = -1,
    factor: float = 1.0,
) -> None:
    """Raise unless a level is closer to the trained network than another one.

    The error of level `order`, times `factor`, must be below that of level `over`.

    **Arguments:**

    - `comparison`: an [`nth.Comparison`][].
    - `order`, `over`: levels, or names of other models, of the comparison.
    - `points`: `"train"` or `"test"`.
    - `index`: which of the times of the comparison; the last one by default.
    - `factor`: by how much the error must be smaller.

    **Raises:** `AssertionError` if it is not, or if an error is not finite;
    `ValueError` for a level, points or an index that the comparison does not have, or
    under `jax.jit`.

    ```python
    import jax
    import jax.numpy as jnp
    import nth

    x = jnp.array([[0.6, 0.8], [1.0, 0.0]])
    problem = nth.Problem(x, jnp.array([1.0, -1.0]))
    network = nth.MLP(2, width=32, depth=1, key=jax.random.key(0))
    comparison = nth.compare(network, problem, [1.0], orders=(2, 4))
    nth.testing.assert_improves(comparison, 4, over=2, factor=5)
    ```
    """
    require_instance("comparison", comparison, Comparison, _COMPARISON)
    require_concrete("comparison", comparison.truth.loss, "testing.assert_improves")
    factor = require_positive("factor", factor)
    i = _index(index, len(comparison.ts))
    error, other = (float(comparison.error(p, points)[i]) for p in (order, over))
    if not error * factor < other:
        raise AssertionError(
            f"at {float(comparison.ts[i]):.4g} the error of {order!r} on {points} "
            f"points is {error:.2e} and that of {over!r} {other:.2e}: smaller by a "
            f"factor of {other / error if error else np.nan:.3g}, not {factor:g}."
        )


def _index(index: int, count: int) -> int:
    if not isinstance(index, int) or not -count <= index < count:
        raise ValueError(
            f"index must be an integer from {-count} to {count - 1}; got {index!r}."
        )
    return index
