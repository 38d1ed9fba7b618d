"""High-level entry points: solve a problem for a network at given times."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree
from typing_extensions import Unpack

from ._dynamics.base import AbstractDynamics
from ._dynamics.dense import DenseHierarchy
from ._dynamics.gradient_flow import GradientFlow
from ._dynamics.matrix_free import MatrixFreeHierarchy
from ._dynamics.stiffness import rate_of_network
from ._integrate.integrate import (
    IntegrateOptions,
    check_options,
    integrate,
)
from ._integrate.solver_costs import (
    NOT_STIFF,
    READING,
    explicit_evaluations,
    implicit_cost,
    is_linear,
    low_rank_evaluations,
)
from ._internal.precision import full_precision
from ._internal.validation import (
    is_traced,
    require_instance,
    require_name,
    require_order,
    require_scale,
    require_times,
)
from ._kernels.costs import forming_cost, kernel_bytes
from ._kernels.evaluation import Points, forward_cost, points_of
from ._kernels.kernels import kernels
from ._network.base import TrainableNetwork, trainable
from ._network.memory import available_bytes
from ._problem.problem import Problem
from ._solution.solution import Solution

Method = Literal["auto", "dense", "matrix-free"]
METHODS: tuple[Method, ...] = ("auto", "dense", "matrix-free")

# Evaluations of the vector field in a solve whose times are not known.
_EVALUATIONS = 300


@full_precision
def solve(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    *,
    order: int,
    method: Method = "auto",
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    weight_decay: Any = 0.0,
    **options: Unpack[IntegrateOptions],
) -> Solution:
    """Predict the outputs of `network` during training by the level-p hierarchy.

    **Arguments:**

    - `network`: an `eqx.Module` of one input, [`nth.MLP`][] or [`nth.from_apply`][],
        at initialization.
    - `problem`: points, targets and loss.
    - `ts`: times, shape `(T,)`, increasing and nonnegative.
    - `order`: the level p, from 2 to 12; p = 2 is the constant NTK. p = 4 is the first
        level that contains every O(1/width) term; p = 3 contains half of them.
    - `method`: `"dense"` forms the kernels K⁽¹⁾ … K⁽ᵖ⁾, of m·n^{p−1} numbers for a
        scalar network, and solves [`nth.DenseHierarchy`][]; `"matrix-free"` solves
        [`nth.MatrixFreeHierarchy`][]; `"auto"` selects the cheaper, by
        [`nth.cheaper_method`][]. `Solution.stats["method"]` is the method used.
    - `filter_spec`: the trained leaves, as for `equinox.partition`; the rest is frozen.
    - `learning_rates`: a number, or a pytree prefix of numbers and arrays over the
        network: the learning rate M of each parameter, 1 by default.
    - `weight_decay`: λ ≥ 0 in dθ/dt = −M (∇L + λ θ). If λ > 0 the method is
        `"matrix-free"`, because kernels are formed at θ₀, which decays.
    - `options`: those of [`nth.integrate`][].

    **Returns:** [`nth.Solution`][].

    **Raises:** `ValueError` for invalid input, `RuntimeError` for a failed solve.
    """
    order = require_order("order", order)
    require_name("method", method, METHODS)
    check_options(options)
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    trained = trainable(network, problem, filter_spec, learning_rates)
    require_times(ts, trained.dtype)  # before kernels are formed
    if options.get("restart") and method == "auto":
        method = "matrix-free"  # the dense form does not know the parameters
    levels = hierarchies(trained, ts, [order], method, weight_decay)
    return integrate(levels[order], ts, **options)


def hierarchies(
    network: TrainableNetwork,
    ts: Any,
    orders: Sequence[int],
    method: Method,
    weight_decay: Any = 0.0,
) -> dict[int, AbstractDynamics]:
    """The hierarchy at each of `orders`; all dense ones share one set of kernels."""
    method = _with_decay(require_name("method", method, METHODS), weight_decay)
    problem = network.problem
    methods: dict[int, Method] = dict.fromkeys(orders, method)
    if method == "auto":
        points, stiffness = points_of(network), _stiffness(network, ts)
        methods = {p: _cheaper(points, problem, p, stiffness) for p in orders}
    dense = [p for p in orders if methods[p] == "dense"]
    levels: dict[int, AbstractDynamics] = {}
    if dense:
        formed = kernels(network, problem, order=max(dense))
        levels = {
            p: DenseHierarchy(formed, problem, order=p, network=network) for p in dense
        }
    for p in orders:
        if p not in levels:
            levels[p] = MatrixFreeHierarchy(
                network, problem, order=p, weight_decay=weight_decay
            )
    return levels


def _with_decay(method: Method, weight_decay: Any) -> Method:
    """The method, given that a weight decay requires the matrix-free one."""
    decay = require_scale("weight_decay", weight_decay)
    if isinstance(decay, float) and decay == 0:
        return method
    if method == "dense":
        raise ValueError(
            'weight_decay: method="dense" has its kernels at the initial parameters, '
            'which decay. Use method="matrix-free", or "auto".'
        )
    return "matrix-free"


def cheaper_method(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float] | None = None,
    *,
    order: int,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Literal["dense", "matrix-free"]:
    """The cheaper method for the level-p hierarchy, by counting multiplications.

    The cost of the dense method is that of forming the kernels, by the algorithm used,
    plus that of reading K⁽ᵖ⁾ at each evaluation; reading one number takes the time of
    twenty multiplications. A matrix-free evaluation with n training points costs c_p
    gradients of 3 n F multiplications. F is the number of multiplications of the
    network at one point, counted in its jaxpr; c_p = (3p² − p − 2)/6 by counting matrix
    products (4/3, 11/3, 7, 34/3 for p = 2, 3, 4, 5), plus 1/3 for constants that are
    recomputed. The result is `"dense"` if it costs less and its kernels fit into a
    quarter of the available memory. `benchmarks/cheaper_method.py` tests this estimate.

    The number of evaluations follows from the last of the times `ts` and the fastest
    rate of the linearized network, for the solvers that `solver="auto"` selects: in
    long solves the dense method takes fewer. Without `ts` it is 300 for both.

    **Arguments:** `network`, `problem`, `filter_spec` and `learning_rates` as for
    [`nth.kernels`][]; `ts` and `order` as for [`nth.solve`][].

    **Returns:** `"dense"` or `"matrix-free"`.

    **Raises:** `ValueError` for invalid input.
    """
    order = require_order("order", order)
    trained = trainable(network, problem, filter_spec, learning_rates)
    stiffness = None if ts is None else _stiffness(trained, ts)
    return _cheaper(points_of(trained), trained.problem, order, stiffness)


def _cheaper(
    points: Points, problem: Problem, order: int, stiffness: float | None
) -> Literal["dense", "matrix-free"]:
    """The cheaper method up to ρT = `stiffness`."""
    rows, slots = points.n_rows, points.n_slots
    size = rows * slots ** (order - 1)
    reading, evaluations = READING * _EVALUATIONS * size, float(_EVALUATIONS)
    if stiffness is not None:
        reading = READING * explicit_evaluations(stiffness) * size
        linear = is_linear(order, problem.loss)
        evaluations = explicit_evaluations(stiffness, linear=linear)
        if stiffness > NOT_STIFF:
            implicit = implicit_cost(size, slots, order, problem.loss)
            reading = min(reading, implicit)
            layered = points.layers(points.params) is not None
            low_rank = low_rank_evaluations(slots, points.output.dtype, layered)
            evaluations = min(evaluations, low_rank)
    gradients = (3 * order**2 - order - 2) / 6 + 1 / 3
    solving = evaluations * gradients * 3 * problem.n_train * forward_cost(points)
    itemsize = points.output.dtype.itemsize
    fits = kernel_bytes(rows, slots, order, itemsize) < available_bytes() / 4
    cheaper = forming_cost(points, order) + reading < solving
    return "dense" if cheaper and fits else "matrix-free"


def _stiffness(network: TrainableNetwork, ts: Any) -> float | None:
    """ρT, with T the last of `ts`; `None` where values are traced or not finite."""
    times = require_times(ts, network.dtype)
    problem, parts = network.problem, (network.apply, network.params, network.rates)
    if is_traced(times, parts, problem, jnp.zeros(())):
        return None
    stiffness = float(rate_of_network(*parts, problem)) * float(times[-1])
    return stiffness if math.isfinite(stiffness) else None


@full_precision
def gradient_flow(
    network: Callable[..., Any],
    problem: Problem,
    ts: ArrayLike | Sequence[float],
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    weight_decay: Any = 0.0,
    **options: Unpack[IntegrateOptions],
) -> Solution:
    """Train `network` by gradient flow, dθ/dt = −∇L(θ), which the hierarchy predicts.

    Arguments, return value and errors are as for [`nth.solve`][]; `valid_until` is ∞.
    """
    check_options(options)
    dynamics = GradientFlow(
        network,
        problem,
        filter_spec=filter_spec,
        learning_rates=learning_rates,
        weight_decay=weight_decay,
    )
    return integrate(dynamics, ts, **options)
