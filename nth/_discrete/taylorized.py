"""Training of the Taylorized network in steps."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from .._custom_types import Inputs, Params, Scalar
from .._dynamics.taylorized import TaylorizedFlow
from .._internal.precision import full_precision
from .._network.base import trainable
from .._problem.problem import Problem
from .._solution.solution import Solution
from .models import (
    AbstractTraining,
    Judgement,
    NetworkState,
    Observed,
    judged_finite,
    optimized,
    report_divergence,
)
from .optimizer import TracedOptimizer, traced
from .plan import plan
from .run_options import RunOptions
from .training_loop import run


class TaylorizedTraining(AbstractTraining):
    """The Taylorized network, trained by an optimizer, which sees θ₀ + w."""

    dynamics: TaylorizedFlow
    optimizer: TracedOptimizer
    method: str = eqx.field(static=True, default="Taylorized")

    def initial_state(self) -> NetworkState:
        return NetworkState(self.dynamics.params, list(self.optimizer.start))

    def step(
        self, state: NetworkState, x: Inputs, y: Shaped[Array, "b ..."]
    ) -> NetworkState:
        dynamics = self.dynamics

        def loss(params: Params) -> Scalar:
            outputs = dynamics.polynomial(self._moved(params), x)
            return dynamics.problem.loss(outputs, y)

        gradient = jax.grad(loss)(state.params)
        return optimized(self.optimizer, state, gradient, dynamics.rates)

    def observed(self, state: NetworkState) -> Observed:
        return Observed(self.dynamics.outputs(self._moved(state.params)))

    def judged(self, start: Observed, saved: Observed) -> Judgement:
        return judged_finite(saved)

    def estimated(self, saved: Observed) -> None:
        return None

    def trained_state(self, state: NetworkState) -> Params:
        return self._moved(state.params)

    def restarts(self, state: NetworkState) -> None:
        return None

    def report(
        self, requested: int, note: str, first: Any, lost: Any, last: Any
    ) -> None:
        report_divergence(self.dynamics.label, note, lost, last)

    def _moved(self, params: Params) -> Params:
        """w = θ − θ₀."""
        return jax.tree.map(jnp.subtract, params, self.dynamics.params)


@full_precision
def train_taylorized(
    network: Callable[..., Any],
    problem: Problem,
    steps: int | Sequence[int] | Any,
    optimizer: Any,
    *,
    degree: int,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    batches: Any = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    save_fn: Callable[..., PyTree[Float[Array, "..."]]] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    """Train the Taylor polynomial of `network` around its initialization by an
    optimizer: what [`nth.TaylorizedFlow`][] is for gradient flow (Bai et al. 2020).

    Degree 1 is the linearized network: for an optimizer whose updates do not depend on
    the parameters its outputs are those of level 2. With weight decay they differ, as
    that decays the parameters θ₀ + w.

    **Arguments:**

    - `network`, `problem`, `steps`, `optimizer` and all options: as for
        [`nth.train`][].
    - `degree`: d ≥ 1.

    **Returns:** [`nth.Solution`][]; `state` is w = θ − θ₀, as that of
    [`nth.TaylorizedFlow`][].

    **Raises:** `ValueError` for bad input.
    """
    options = RunOptions(save_fn, progress, checkpoint).checked()
    own = trainable(network, problem, filter_spec, learning_rates)
    flow = TaylorizedFlow(own, own.problem, degree=degree)
    planned = plan(steps, own.problem.n_train, batch_size, key, batches)
    training = TaylorizedTraining(
        dynamics=flow, optimizer=traced(optimizer, own.params)
    )
    return run(training, planned, options)
