"""The front door: a network, a problem and times become a solution."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
from jaxtyping import ArrayLike, PyTree
from typing_extensions import Unpack

from ._errors import require_integer, require_name
from ._flow import GradientFlow
from ._hierarchy import DenseHierarchy
from ._integrate import (
    IntegrateOptions,
    Solution,
    check_options,
    check_times,
    integrate,
)
from ._kernels import kernels
from ._problem import Problem


def solve(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    *,
    order: int,
    method: Literal["auto", "dense"] = "auto",
    filter_spec: PyTree = eqx.is_inexact_array,
    **options: Unpack[IntegrateOptions],
) -> Solution:
    """Predict the outputs of `network` through training, by the level-p hierarchy.

    **Arguments:**

    - `network`: an `eqx.Module` of one input, [`nth.MLP`][] or [`nth.from_apply`][],
        at initialisation.
    - `problem`: points, targets and loss.
    - `ts`: times, shape `(T,)`, increasing, from 0 on.
    - `order`: the level p ≥ 2; p = 2 is the constant NTK. p = 4 is the first level that
        holds every O(1/width) term; p = 3 holds half of them.
    - `method`: `"dense"` forms the kernels K⁽¹⁾ … K⁽ᵖ⁾, of m·n^{p−1} numbers for a
        scalar network, and solves [`nth.DenseHierarchy`][]; `"auto"` chooses it.
    - `filter_spec`: what trains, as for `equinox.partition`; the rest is frozen.
    - `options`: those of [`nth.integrate`][].

    **Returns:** [`nth.Solution`][].

    **Raises:** `ValueError` for bad input, `RuntimeError` for a failed solve.
    """
    order = require_integer("order", order, 2)
    require_name("method", method, ("auto", "dense"))
    check_options(options)
    check_times(ts, problem.x_train.dtype)
    formed = kernels(network, problem, order, filter_spec=filter_spec)
    return integrate(DenseHierarchy(formed, problem), ts, **options)


def gradient_flow(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    **options: Unpack[IntegrateOptions],
) -> Solution:
    """Train `network` by gradient flow, dθ/dt = −∇L(θ): what the hierarchy predicts.

    Arguments, returns and raises as for [`nth.solve`][]; `valid_until` is ∞.
    """
    dynamics = GradientFlow(network, problem, filter_spec=filter_spec)
    return integrate(dynamics, ts, **options)
