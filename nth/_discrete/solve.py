"""High-level entry points of discrete training."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._dynamics.gradient_flow import GradientFlow
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._dynamics.parameter_dynamics import AbstractDescent
from .._internal.validation import require_order
from .._network.base import TrainableNetwork, trainable
from .._problem.problem import Problem
from .._solution.solution import Solution
from .rule import GradientDescent, Plan, plan, require_rule
from .training_loop import descend, look_at_rate


def solve_discrete(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    rule: GradientDescent,
    *,
    order: int,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Solution:
    """Predict the outputs of `network` through discrete training, at level p.

    It is the series of [`nth.MatrixFreeHierarchy`][] with another clock: a step takes
    u_k to u_k − η M [J(θ_ε)ᵀ g]_{k−1}, momentum has a buffer for each k, g is that of
    the batch, and under weight decay the coefficient u_0 = θ₀ decays too. It holds
    the discrete hierarchy of Huang & Yau, eq. 29, at any level.

    **Arguments:**

    - `network`, `problem`, `filter_spec`: as for [`nth.solve`][].
    - `steps`: how many steps to take, N, for outputs at steps 0 … N; or an increasing
        sequence of the requested steps. Step 0 is before training.
    - `rule`: [`nth.GradientDescent`][].
    - `order`: the level p ≥ 2. A step costs a few gradients of its batch.
    - `learning_rates`: a number, or a pytree prefix of numbers and arrays over the
        network: what the rule's learning rate is multiplied by for each parameter.

    **Returns:** [`nth.Solution`][], `ts` the requested steps. `state` is that of
    [`nth.MatrixFreeHierarchy`][], whose `predict` takes new points. `valid_until` is
    the first requested step, or ∞, at which one of two conditions holds:

    - f̃ and the network at θ₀ + Σ_k u_k, two predictions that are equal up to the order
        of the level, part on the training points by more than half of the greatest
        change predicted up to there;
    - the predicted loss, with λ/2 ‖θ‖², has risen by more than all the loss that there
        was at step 0. With momentum and batches it may well rise by less.

    Beyond [`nth.max_learning_rate`][] a warning is given, [`nth.WindowWarning`][].

    **Raises:** `ValueError` for bad input.
    """
    order = require_order("order", order)
    require_rule(rule)
    own = trainable(network, problem, filter_spec, learning_rates)
    return levels_by_steps(own, steps, [order], rule)[order]


def levels_by_steps(
    network: TrainableNetwork,
    steps: Any,
    orders: Sequence[int],
    rule: GradientDescent,
) -> dict[int, Solution]:
    """The prediction at each of `orders`; the rate is looked at once."""
    decay = require_rule(rule).weight_decay
    solutions = {}
    for p in orders:
        dynamics = MatrixFreeHierarchy(
            network, network.problem, order=p, weight_decay=decay
        )
        planned = _plan(rule, steps, dynamics)
        if not solutions:
            look_at_rate(dynamics, planned)
        solutions[p] = descend(dynamics, planned)
    return solutions


def gradient_descent(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    rule: GradientDescent,
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Solution:
    """Train `network` by `rule`, θ ← θ − η M v: what [`nth.solve_discrete`][] predicts.

    Arguments, returns and raises as there. `state` is the trained parameters;
    `valid_until` is ∞, also where training diverges: outputs are NaN from there on,
    and a `RuntimeWarning` says so.
    """
    dynamics = GradientFlow(
        network,
        problem,
        filter_spec=filter_spec,
        learning_rates=learning_rates,
        weight_decay=require_rule(rule).weight_decay,
    )
    return descend(dynamics, _plan(rule, steps, dynamics))


def _plan(rule: GradientDescent, steps: Any, dynamics: AbstractDescent) -> Plan:
    dtype = jax.tree.leaves(dynamics.params)[0].dtype
    return plan(rule, steps, dynamics.problem.n_train, dtype)
