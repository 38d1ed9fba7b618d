"""Expansions in ε of training by an optimizer: where ε is, and what a step does.

- Of an optimizer that is linear, ε weighs the gradients. Each coefficient of θ_ε is
  trained by the optimizer itself, with its own buffers: coefficient k by
  [J(θ_ε)ᵀ g]_{k−1}, coefficient 0 by no gradient at all.
- Of any other, ε weighs the update, θ ← θ + ε U(G_ε, S_ε, θ_ε), whose coefficients are
  pushed through U as power series.
"""

import abc
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import Params
from .._dynamics.series import SeriesState, Steps
from .._network.learning_rates import by_rates
from .optimizer import TracedOptimizer
from .power_series import Value, as_series

OptimizerState: TypeAlias = list[Value]


class AbstractExpansion(eqx.Module):
    """How the coefficients of θ_ε, and of the optimizer's state, are trained."""

    optimizer: eqx.AbstractVar[TracedOptimizer]

    moves: eqx.AbstractVar[bool]
    """Whether θ₀ is part of the state: it moves, or the series is expanded again."""

    @abc.abstractmethod
    def initial_state(
        self, params: Params, order: int, start: Sequence[Array]
    ) -> tuple[SeriesState, OptimizerState]:
        """θ_ε and the optimizer's state before the first step from `params`, where the
        leaves of the optimizer's state are `start`."""

    @abc.abstractmethod
    def step(
        self,
        params: Params,
        rates: Params | None,
        gradients: Steps,
        series: SeriesState,
        state: OptimizerState,
    ) -> tuple[SeriesState, OptimizerState]:
        """Both after a step by [J(θ_ε)ᵀ g]_0 … [J(θ_ε)ᵀ g]_{p−2} = `gradients`; θ₀ is
        `params` where it is not part of `series`."""


class GradientExpansion(AbstractExpansion):
    """ε weighs the gradients of a linear optimizer."""

    optimizer: TracedOptimizer
    moves: bool = eqx.field(static=True)

    def initial_state(
        self, params: Params, order: int, start: Sequence[Array]
    ) -> tuple[SeriesState, OptimizerState]:
        state = [
            (*[leaf] * self.moves, *[jnp.zeros_like(leaf)] * (order - 1))
            if form.varies
            else leaf
            for leaf, form in zip(start, self.optimizer.forms, strict=True)
        ]
        return _first(params, order, self.moves), state

    def step(
        self,
        params: Params,
        rates: Params | None,
        gradients: Steps,
        series: SeriesState,
        state: OptimizerState,
    ) -> tuple[SeriesState, OptimizerState]:
        terms = series.steps
        if series.base is not None:
            terms = (series.base, *terms)
            gradients = (jax.tree.map(jnp.zeros_like, series.base), *gradients)
        moved, states = [], []
        for k, (term, gradient) in enumerate(zip(terms, gradients, strict=True)):
            own = [leaf[k] if isinstance(leaf, tuple) else leaf for leaf in state]
            updates, after = self.optimizer(
                jax.tree.leaves(gradient), own, jax.tree.leaves(term)
            )
            moved.append(add_updates(term, updates, rates))
            states.append(after)
        new = [
            each if isinstance(leaf, tuple) else each[0]
            for leaf, each in zip(state, zip(*states, strict=True), strict=True)
        ]
        count = len(series.steps)
        base = moved[0] if series.base is not None else None
        return SeriesState(base, tuple(moved[len(moved) - count :])), new


class UpdateExpansion(AbstractExpansion):
    """ε weighs the update of any optimizer."""

    optimizer: TracedOptimizer
    moves: bool = eqx.field(static=True)

    def initial_state(
        self, params: Params, order: int, start: Sequence[Array]
    ) -> tuple[SeriesState, OptimizerState]:
        state = [
            (leaf, *[jnp.zeros_like(leaf)] * (order - 2))
            if form.varies and jnp.issubdtype(leaf.dtype, jnp.inexact)
            else leaf
            for leaf, form in zip(start, self.optimizer.forms, strict=True)
        ]
        return _first(params, order, self.moves), state

    def step(
        self,
        params: Params,
        rates: Params | None,
        gradients: Steps,
        series: SeriesState,
        state: OptimizerState,
    ) -> tuple[SeriesState, OptimizerState]:
        params = params if series.base is None else series.base
        updates, after = self.optimizer(
            _by_leaf(gradients), state, _by_leaf((params, *series.steps[:-1]))
        )
        order = len(series.steps)
        updates = [as_series(update, order) for update in updates]
        new = [
            as_series(leaf, order) if isinstance(before, tuple) else leaf
            for before, leaf in zip(state, after, strict=True)
        ]
        steps = tuple(
            add_updates(step, [update[k] for update in updates], rates)
            for k, step in enumerate(series.steps)
        )
        return SeriesState(series.base, steps), new


def expansion_of(optimizer: TracedOptimizer, restart: bool) -> AbstractExpansion:
    """ε on the gradients where that is exact, else on the update; with θ₀ in the state
    if the series is to be expanded again (`restart`)."""
    if optimizer.linear:
        return GradientExpansion(optimizer, optimizer.moves_start or restart)
    return UpdateExpansion(optimizer, restart)


def _first(params: Params, order: int, moves: bool) -> SeriesState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return SeriesState(params if moves else None, (zeros,) * (order - 1))


def _by_leaf(terms: Sequence[Params]) -> list[Value]:
    """Terms of a series of pytrees as a series for each leaf."""
    return list(zip(*map(jax.tree.leaves, terms), strict=True))


def add_updates(params: Params, updates: Sequence[Any], rates: Params | None) -> Params:
    """θ + M U, in the dtype of θ, as `optax.apply_updates` adds."""
    treedef = jax.tree.structure(params)
    scaled = by_rates(rates, jax.tree.unflatten(treedef, list(updates)))

    def added(leaf: Array, update: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, update.dtype)
        return (leaf.astype(dtype) + update.astype(dtype)).astype(leaf.dtype)

    return jax.tree.map(added, params, scaled)
