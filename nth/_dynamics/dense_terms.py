"""The terms in ε of the dense hierarchy, by quadrature along its solution.

Give each application of D a weight ε, and let K⁽ʳ⁾_k be the coefficient of ε^k in K̃⁽ʳ⁾:

    dK⁽ʳ⁾_k/dt = −K⁽ʳ⁺¹⁾_{k−1} · g,    K̃⁽ʳ⁾ = Σ_k K⁽ʳ⁾_k,    r + k ≤ p.

K⁽ʳ⁾_0 is constant and K⁽ʳ⁾_1 = −K⁽ʳ⁺¹⁾_0 · ∫g. So, given g along the solution, all
terms are iterated integrals. The last one of f needs products of K⁽ᵖ⁾ with ∫g at every
node. It follows without them from the sum

    Σ_{k≥2} df_k/dt = −(K̃⁽²⁾ − K⁽²⁾_0) · g,

if K̃⁽²⁾ is known there. Nothing here acts back on the solution. A panel of time is
integrated by Gauss–Legendre quadrature, several panels together.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .dense import DenseHierarchy, Levels

# Six nodes integrate e^{−λt} over [a, 2a] to 1e-9 for every λ.
_NODES = 6
# Panels of one product, in which a kernel is read once.
_TOGETHER = 4


class Rule(NamedTuple):
    """Quadrature on [0, 1]: nodes, weights, and integrals from 0 to each node."""

    nodes: np.ndarray
    weights: np.ndarray
    partial: np.ndarray


def gauss_legendre(count: int = _NODES) -> Rule:
    """Gauss–Legendre quadrature with `count` nodes."""
    x, weights = np.polynomial.legendre.leggauss(count)
    values = np.polynomial.legendre.legvander(x, count - 1)
    integrals = [
        np.polynomial.legendre.legval(x, np.polynomial.legendre.legint(unit, lbnd=-1))
        for unit in np.eye(count)
    ]
    partial = np.linalg.solve(values.T, np.array(integrals)).T
    return Rule((1 + x) / 2, weights / 2, partial / 2)


class Rates(NamedTuple):
    """What the quadrature takes from the solution, at each node."""

    slope: Float[Array, "*k slots"]
    """g."""

    kernel_motion: Float[Array, "*k rows"] | None
    """−(K̃⁽²⁾ − K⁽²⁾_0) · g; `None` where the last term is computed by products."""


class Integrals(eqx.Module):
    """The iterated integrals at one time, or at several."""

    slope: Float[Array, "*t slots"]
    """∫ g."""

    terms: Float[Array, "*t k rows"]
    """f_2, …, f_{p−1}."""

    kernels: tuple[tuple[Array, ...], ...]
    """K⁽ʳ⁾_k for k = 2 … and r = 2 …, up to r + k = p, or p − 1 without products."""


def start_of_terms(dynamics: DenseHierarchy, *, by_products: bool) -> Integrals:
    """The integrals at t = 0."""
    flat = _flat(dynamics)
    p = len(flat)
    end = p + 1 if by_products else p  # of r + k
    kernels = tuple(
        tuple(jnp.zeros_like(flat[r - 1]) for r in range(2, end - k))
        for k in range(2, end - 2)
    )
    return Integrals(
        slope=jnp.zeros_like(flat[1][0]),
        terms=jnp.zeros((p - 2, flat[0].size), flat[0].dtype),
        kernels=kernels,
    )


def rates_at(dynamics: DenseHierarchy, state: Levels, *, by_products: bool) -> Rates:
    """g and −(K̃⁽²⁾ − K⁽²⁾_0) · g at a state."""
    slope = dynamics.output_gradient(state[0])
    if by_products:
        return Rates(slope.ravel(), None)
    kernel_motion = jnp.zeros_like(state[0])
    if len(dynamics.levels) > 2:
        moved = dynamics.levels[1] - state[1]
        kernel_motion = jnp.tensordot(moved, slope, axes=slope.ndim)
    return Rates(slope.ravel(), kernel_motion.ravel())


def terms_over(
    dynamics: DenseHierarchy,
    start: Integrals,
    rates: Rates,
    widths: Float[Array, " panels"],
) -> tuple[Integrals, Integrals]:
    """The integrals at the end, and at the end of each panel.

    `rates` are those at the nodes, of shape `(panels, nodes, …)`.
    """
    flat, rule = _flat(dynamics), gauss_legendre()

    def together(now: Integrals, inputs: tuple[Rates, Array]) -> Any:
        return _over_panels(flat, rule, now, *inputs)

    def grouped(leaf: Array) -> Array:
        """Groups of panels; the last one ends with panels without a width. Values at
        nodes that a solve did not reach must not spoil earlier panels of a group."""
        leaf = jnp.where(jnp.isfinite(leaf), leaf, 0)
        padding = [(0, -len(leaf) % _TOGETHER), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, padding).reshape(-1, _TOGETHER, *leaf.shape[1:])

    end, each = jax.lax.scan(together, start, jax.tree.map(grouped, (rates, widths)))
    flattened = jax.tree.map(lambda leaf: jnp.concatenate(leaf)[: len(widths)], each)
    return end, flattened


def _over_panels(
    flat: Levels,
    rule: Rule,
    now: Integrals,
    rates: Rates,
    widths: Float[Array, " panels"],
) -> tuple[Integrals, Integrals]:
    """The integrals at the end, and at the end of each panel."""
    rates = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rates)
    to_nodes, to_ends = _integration(rule, widths)
    term_rates, kernels = _term_rates(flat, now, rates, to_nodes, to_ends[-1])
    slopes = _integral(now.slope, to_ends, rates.slope)
    ends = [
        _integral(term, to_ends, rate)
        for term, rate in zip(now.terms, term_rates, strict=True)
    ]
    terms = (
        jnp.stack(ends, axis=1)
        if ends
        else jnp.broadcast_to(now.terms, (len(widths), *now.terms.shape))
    )
    each = Integrals(slopes, terms, ())  # kernels are needed at the end alone
    return Integrals(slopes[-1], terms[-1], kernels), each


def _term_rates(
    flat: Levels,
    now: Integrals,
    rates: Rates,
    to_nodes: Float[Array, "k k"],
    to_end: Float[Array, " k"],
) -> tuple[list[Float[Array, "k rows"]], tuple[tuple[Array, ...], ...]]:
    """df_2/dt, …, df_{p−1}/dt at the nodes, and the kernels at the end."""
    p, g, motion = len(flat), rates.slope, rates.kernel_motion
    highest = p if motion is not None else p + 1  # of r + k, without the last of f
    # K⁽ʳ⁾_1 at the nodes: one product with all their vectors.
    total = _integral(now.slope, to_nodes, g)
    level = [-_times(kernel, total) for kernel in flat[2 : highest - 1]]
    term_rates, kernels = [], []
    for starts in (*now.kernels, ())[: len(level)]:  # of K⁽ʳ⁾_k for k = 2, 3, …
        term, *moving = (-_times_each(kernel, g) for kernel in level)
        advanced = list(zip(starts, moving, strict=True))
        level = [_integral(start, to_nodes, rate) for start, rate in advanced]
        term_rates.append(term)
        kernels.append(tuple(_integral(s, to_end, rate) for s, rate in advanced))
    if motion is not None and p > 2:
        term_rates.append(motion - sum(term_rates, jnp.zeros_like(motion)))
    return term_rates, tuple(kernels[: len(now.kernels)])


def _integral(start: Array, weights: Float[Array, "*k nodes"], rate: Array) -> Array:
    """`start` plus the integral of `rate`, from its values at the nodes."""
    integral = jnp.tensordot(weights, rate, axes=1)
    return jnp.broadcast_to(start, integral.shape) + integral


def _integration(
    rule: Rule, widths: Float[Array, " panels"]
) -> tuple[Float[Array, "k k"], Float[Array, "panels k"]]:
    """From values at the nodes of all panels to integrals from the start of the first
    panel to each node, and to the end of each panel."""
    panels, dtype = len(widths), widths.dtype
    upto, before, own = (
        jnp.asarray(matrix, dtype)
        for matrix in (np.tri(panels), np.tri(panels, k=-1), np.eye(panels))
    )
    weights, partial = (
        jnp.asarray(part, dtype) for part in (rule.weights, rule.partial)
    )
    at_each = jnp.ones_like(weights)
    to_nodes = jnp.einsum("ij,j,b,a->iajb", before, widths, weights, at_each)
    to_nodes = to_nodes + jnp.einsum("ij,j,ab->iajb", own, widths, partial)
    to_ends = jnp.einsum("ij,j,b->ijb", upto, widths, weights)
    size = panels * len(rule.nodes)
    return to_nodes.reshape(size, size), to_ends.reshape(panels, size)


def _flat(dynamics: DenseHierarchy) -> Levels:
    """K⁽¹⁾, …, K⁽ᵖ⁾ with one index for each slot."""
    levels = dynamics.levels
    slots = levels[0][: dynamics.problem.n_train].size
    return tuple(k.reshape(-1, *[slots] * r) for r, k in enumerate(levels))


def _times(kernel: Array, vectors: Float[Array, "k slots"]) -> Array:
    """The last slot summed against each vector, which becomes the first axis."""
    product = kernel.reshape(-1, vectors.shape[1]) @ vectors.T
    return product.T.reshape(len(vectors), *kernel.shape[:-1])


def _times_each(kernels: Array, vectors: Float[Array, "k slots"]) -> Array:
    """The last slot of the i-th kernel summed against the i-th vector."""
    flat = kernels.reshape(len(vectors), -1, vectors.shape[1])
    return jnp.einsum("kas,ks->ka", flat, vectors).reshape(kernels.shape[:-1])
