"""Estimates of the error along a solve.

A truncation that knows its error at a state is asked at the requested times. The terms
of the dense hierarchy are integrals along the solution. They are integrated over panels
that end at the requested times and, between the start and the last time, at times in
geometric progression: a solution of decaying exponentials is smooth over each panel.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics
from .._dynamics.dense import DenseHierarchy
from .._dynamics.dense_terms import (
    Integrals,
    Rates,
    gauss_legendre,
    start_of_terms,
    terms_over,
)
from .._dynamics.linearization_error import linearization_errors
from .._dynamics.truncation import AbstractTruncation, last_term_factors
from .solvers.exponential import DenseExponential

# Panels between the start and the last time: the first is 2^−24 of the whole.
_PANELS = 24


class Reached(NamedTuple):
    """What one part of a solve hands on to the next."""

    state: State
    integrals: Integrals | None = None
    expansion: Any = None
    """An `Expansion`, in a solve with restarts."""


def terms_by_products(solver: diffrax.AbstractSolver) -> bool:
    """Whether the terms take products with K⁽ᵖ⁾: for `DenseExponential`, which computes
    the kernel at each time between two steps by such a product."""
    return isinstance(solver, DenseExponential)


def at_start(dynamics: AbstractDynamics, solver: diffrax.AbstractSolver) -> Reached:
    """The values at t = 0."""
    integrals = None
    if isinstance(dynamics, DenseHierarchy):
        # One compiled function, not one for each array.
        by_products = terms_by_products(solver)
        integrals = eqx.filter_jit(start_of_terms)(dynamics, by_products=by_products)
    return Reached(dynamics.initial_state(), integrals)


def errors_at(
    dynamics: AbstractDynamics, state: State
) -> Float[Array, "m *out"] | None:
    """The estimate at a state, if the dynamics knows it."""
    if isinstance(dynamics, AbstractTruncation):
        return dynamics.output_errors(state)
    return None


def node_times(
    dynamics: AbstractDynamics, start: Scalar, ts: Float[Array, " T"]
) -> Float[Array, " k"] | None:
    """The times at which `rates_at` is needed, increasing; `None` if at none."""
    if not isinstance(dynamics, DenseHierarchy):
        return None
    edges = _edges(start, ts)
    nodes = jnp.asarray(gauss_legendre().nodes, ts.dtype)
    widths = edges[1:] - edges[:-1]
    times = edges[:-1, None] + widths[:, None] * nodes[None]
    # By rounding a node could lie beyond the end of its panel.
    return jnp.minimum(times, edges[1:, None]).reshape(-1)


def _edges(start: Scalar, ts: Float[Array, " T"]) -> Float[Array, " edges"]:
    ratios = 0.5 ** jnp.arange(1, _PANELS + 1, dtype=ts.dtype)
    between = start + (ts[-1] - start) * ratios
    return jnp.sort(jnp.concatenate([start[None], between, ts]))


def dense_errors(
    dynamics: DenseHierarchy,
    start: Scalar,
    ts: Float[Array, " T"],
    integrals: Integrals | None,
    rates: Rates,
    outputs: Float[Array, "T m *out"],
) -> tuple[Float[Array, "T m *out"] | None, Integrals]:
    """The estimate at `ts`, and the integrals at the last of them.

    `rates` are those at `node_times`. At level 2 the only term is the whole change, and
    the estimate needs the network.
    """
    assert integrals is not None  # for the type checker: the dynamics is dense
    each, last = integrals_at(dynamics, start, ts, integrals, rates)
    order = len(dynamics.levels)
    if order > 2:
        terms = each.terms.reshape(len(ts), -1, *outputs.shape[1:])
        first = outputs - dynamics.levels[0][None] - jnp.sum(terms, axis=1)
        factors = last_term_factors(
            order, rms_over_points(first), rms_over_points(terms[:, 0])
        )
        return jnp.expand_dims(factors, range(1, outputs.ndim)) * terms[:, -1], last
    if dynamics.network is None:
        return None, last
    changes = outputs - dynamics.levels[0][None]
    return linearization_errors(dynamics.network, ts, changes, each.slope), last


def integrals_at(
    dynamics: DenseHierarchy,
    start: Scalar,
    ts: Float[Array, " T"],
    integrals: Integrals,
    rates: Rates,
) -> tuple[Integrals, Integrals]:
    """The integrals at each of `ts`, and at the last with the kernels."""
    edges = _edges(start, ts)
    panels = jax.tree.map(
        lambda leaf: leaf.reshape(len(edges) - 1, -1, *leaf.shape[1:]), rates
    )
    last, each = terms_over(dynamics, integrals, panels, edges[1:] - edges[:-1])
    index = jnp.searchsorted(edges, ts)
    first = eqx.tree_at(lambda i: i.kernels, integrals, ())
    return jax.tree.map(
        lambda leaf, later: jnp.concatenate([leaf[None], later])[index], first, each
    ), last


class Estimate(NamedTuple):
    """The fields of `Solution` about its error."""

    error_estimate: Float[Array, " T"]
    error_share: Float[Array, " T"]
    output_errors: Float[Array, "T m *out"] | None


def estimate_of(
    errors: Any, outputs: Float[Array, "T m *out"], start: Float[Array, "m *out"]
) -> Estimate:
    """The estimate, also as a share of the greatest change predicted so far: zero while
    that change is no more than the rounding errors of the outputs."""
    if errors is None:
        unknown = jnp.full(len(outputs), jnp.nan, outputs.dtype)
        return Estimate(unknown, unknown, None)
    size, change = rms_over_points(errors), rms_over_points(outputs - start[None])
    greatest = jax.lax.cummax(change)
    rounding = 8 * jnp.finfo(outputs.dtype).eps * rms_over_points(start[None])
    changed = greatest > rounding
    share = jnp.where(changed, size / jnp.where(changed, greatest, 1), 0)
    return Estimate(size, share, errors)


def rms_over_points(values: Float[Array, "T m *out"]) -> Float[Array, " T"]:
    """Root mean square over points and outputs, with a derivative of zero at zero."""
    square = jnp.mean(values**2, axis=range(1, values.ndim))
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.sqrt(safe), jnp.where(square == 0, 0, square))
