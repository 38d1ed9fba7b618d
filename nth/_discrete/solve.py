"""High-level entry points of discrete training."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._dynamics.gradient_flow import GradientFlow
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._integrate.options import check_until_error, refuse_restart
from .._internal.precision import full_precision
from .._internal.validation import is_traced, require_order
from .._network.base import TrainableNetwork, trainable
from .._problem.problem import Problem
from .._solution.solution import Solution
from .expansion import expansion_of
from .models import LevelTraining, NetworkTraining
from .optimizer import TracedOptimizer, traced
from .plan import Plan, plan
from .restarts import RestartingTraining
from .run_options import RunOptions
from .stability import warn_of_instability
from .training_loop import run


@full_precision
def solve_discrete(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    optimizer: Any,
    *,
    order: int,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    batches: Any = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    save_fn: Callable[..., PyTree[Array]] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    until_error: float | None = None,
    restart: bool = False,
) -> Solution:
    """Predict the outputs of `network` trained by an optimizer, at level p.

    It is the series of [`nth.MatrixFreeHierarchy`][] in steps: f̃ = Σ_{k<p} [f(θ_ε)]_k
    with θ_ε = θ₀ + Σ_k ε^k u_k. Where ε is depends on the optimizer, which is proved
    linear or not from its jaxpr:

    - **Linear in the gradients** (SGD, momentum, weight decay, schedules): ε weighs
        each gradient. u_k is trained by the optimizer itself, with buffers of
        its own, on [J(θ_ε)ᵀ g]_{k−1}. Under weight decay u_0 = θ₀ decays too. For plain
        SGD this is the discrete hierarchy of Huang & Yau, eq. 29, at any level.
    - **Any other** (Adam, RMSprop, Lion, clipping): ε weighs the update,
        θ ← θ + ε U(G_ε, S_ε, θ_ε), with gradients G_ε = J(θ_ε)ᵀ g and the optimizer's
        state S_ε, and u_{k+1} ← u_{k+1} + [U]_k.

    Level 2 of an optimizer whose updates do not depend on the parameters is the
    linearized network, trained by that optimizer.

    **Arguments:**

    - `network`, `problem`, `filter_spec`: as for [`nth.solve`][].
    - `steps`: how many steps to take, N, for outputs at steps 0 … N; or an increasing
        sequence of the requested steps. Step 0 is before training.
    - `optimizer`: an `optax.GradientTransformation`. It acts on the network with `None`
        in place of what is not trained. Those that need more than gradients and
        parameters, such as line searches, are refused.
    - `order`: the level p ≥ 2. A step costs a few gradients of its batch.
    - `batch_size`: training points per step, all n by default; the loss of a step is
        their mean loss. Each epoch draws a permutation of the points and splits it into
        batches, without replacement; the n mod `batch_size` points at the end of a
        permutation are left out of that epoch.
    - `key`: a `jax.random.key` for the batches, required with `batch_size`. Batches
        depend only on it, on n and on the step, so they are the same for the network
        and for every level.
    - `batches`: in place of these two, the training points of each step, integers of
        shape `(N, batch size)`.
    - `learning_rates`: a number, or a pytree prefix of numbers and arrays over the
        network: what the optimizer's updates are multiplied by for each parameter.
    - `save_fn`: a function `save_fn(step, state, args)` of floating arrays, whose
        values at the requested steps are in `Solution.saved`; `state` is that of a
        solution, and `args` is `None`, as for [`nth.integrate`][].
    - `progress`: whether to show a progress bar once the run has taken 5 seconds. There
        is no bar under a transformation of JAX.
    - `checkpoint`: a file to save to every few seconds. An interrupted run that is
        repeated with the same arguments goes on from there.
    - `until_error`: outputs are NaN from the first requested step where
        `Solution.error_estimate` exceeds this number, and `result` is `error_reached`.
    - `restart`: with `until_error`, expand the series again around the parameters
        reached, with the optimizer's state there, so that the estimates of all parts
        together stay below `until_error` up to the last step. `Solution.restarts` holds
        the steps. Each step then also evaluates all points, for the estimate. Not under
        transformations of JAX.

    **Returns:** [`nth.Solution`][], `ts` the requested steps. `state` is that of
    [`nth.MatrixFreeHierarchy`][], whose `predict` takes new points. `valid_until` is
    the first requested step, or ∞, at which one of these holds:

    - f̃ and the network at θ₀ + Σ_k u_k, two predictions that are equal up to the order
        of the level, part on the training points by more than half of the greatest
        change predicted up to there;
    - for p > 2, the series does not converge: the last term, of order ε^{p−1},
        exceeds half of that change, or the last u_k is larger than the one before;
    - the predicted loss has risen by more than the loss at step 0, and by more than
        that of outputs 0. With momentum and batches it may well rise by less;
    - outputs are infinite or undefined, as where the square root of a second moment has
        no expansion; see [the documentation](../discrete.md#convergence).

    A warning, [`nth.WindowWarning`][], says so. Another is given for a linear optimizer
    whose linearized training is unstable; see [`nth.max_learning_rate`][].

    **Raises:** `ValueError` for bad input.
    """
    order = require_order("order", order)
    options = RunOptions(save_fn, progress, checkpoint).checked()
    own = trainable(network, problem, filter_spec, learning_rates)
    planned = plan(steps, own.problem.n_train, batch_size, key, batches)
    program = traced(optimizer, own.params)
    warn_of_instability(own, planned, optimizer, program)
    check_until_error(until_error, restart)
    refuse_restart(restart, is_traced((own, planned, program), jnp.zeros(())))
    training = level_of(own, order, program, restart)
    if until_error is None:
        return run(training, planned, options)
    tolerance = jnp.asarray(until_error, own.dtype)
    if not restart:
        return run(training, planned, options, tolerance)
    restarting = RestartingTraining(
        dynamics=training.dynamics,
        expansion=training.expansion,
        tolerance=tolerance,
        number=planned.number,
    )
    return run(restarting, planned, options, tolerance)


@full_precision
def train(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    optimizer: Any,
    *,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    batches: Any = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    save_fn: Callable[..., PyTree[Array]] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    """Train `network` by an optimizer: what [`nth.solve_discrete`][] predicts.

    Arguments, returns and raises as there. `state` is the trained parameters;
    `valid_until` is ∞, also where training diverges: outputs are NaN from there on,
    and a `RuntimeWarning` says so.
    """
    options = RunOptions(save_fn, progress, checkpoint).checked()
    own = trainable(network, problem, filter_spec, learning_rates)
    planned = plan(steps, own.problem.n_train, batch_size, key, batches)
    return trained_network(own, planned, traced(optimizer, own.params), options)


def levels_of(
    network: TrainableNetwork,
    planned: Plan,
    orders: Sequence[int],
    optimizer: TracedOptimizer,
    options_of: Callable[[int], RunOptions],
) -> dict[int, Solution]:
    """The prediction at each of `orders`."""
    return {
        p: run(level_of(network, p, optimizer), planned, options_of(p)) for p in orders
    }


def level_of(
    network: TrainableNetwork,
    order: int,
    optimizer: TracedOptimizer,
    restart: bool = False,
) -> LevelTraining:
    """The level p = `order`; with θ₀ in its state if it is to be expanded again."""
    hierarchy = MatrixFreeHierarchy(network, network.problem, order=order)
    expansion = expansion_of(optimizer, restart)
    return LevelTraining(dynamics=hierarchy, expansion=expansion)


def trained_network(
    network: TrainableNetwork,
    planned: Plan,
    optimizer: TracedOptimizer,
    options: RunOptions,
) -> Solution:
    """The solution of the trained network."""
    flow = GradientFlow(network, network.problem)
    return run(NetworkTraining(dynamics=flow, optimizer=optimizer), planned, options)
