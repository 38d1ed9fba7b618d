"""The terms in ε of the dense hierarchy, by quadrature along its solution.

Give each application of D a weight ε, and let K⁽ʳ⁾_k be the coefficient of ε^k in K̃⁽ʳ⁾:

    dK⁽ʳ⁾_k/dt = −K⁽ʳ⁺¹⁾_{k−1} · g,    K̃⁽ʳ⁾ = Σ_k K⁽ʳ⁾_k,    r + k ≤ p.

K⁽ʳ⁾_0 is constant and K⁽ʳ⁾_1 = −K⁽ʳ⁺¹⁾_0 · ∫g. So, given g along the solution, all
terms with r + k < p are iterated integrals, and the last one of f follows from the sum,

    Σ_{k≥2} df_k/dt = −(K̃⁽²⁾ − K⁽²⁾_0) · g,

without a product with K⁽ᵖ⁾. Nothing here acts back on the solution. A panel of time is
integrated by Gauss–Legendre quadrature.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Scalar
from .dense import DenseHierarchy, Levels

# Six nodes integrate e^{−λt} over [a, 2a] to 1e-9 for every λ.
_NODES = 6


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

    kernel_motion: Float[Array, "*k rows"]
    """−(K̃⁽²⁾ − K⁽²⁾_0) · g."""


class Integrals(eqx.Module):
    """The iterated integrals at one time."""

    slope: Float[Array, " slots"]
    """∫ g."""

    terms: Float[Array, "k rows"]
    """f_2, …, f_{p−1}."""

    kernels: tuple[tuple[Array, ...], ...]
    """K⁽ʳ⁾_k for k = 2 … p − 3, and for each k r = 2 … p − 1 − k."""


def start_of_terms(dynamics: DenseHierarchy) -> Integrals:
    """The integrals at t = 0."""
    flat = _flat(dynamics)
    p = len(flat)
    kernels = tuple(
        tuple(jnp.zeros_like(flat[r - 1]) for r in range(2, p - k))
        for k in range(2, p - 2)
    )
    return Integrals(
        slope=jnp.zeros_like(flat[1][0]),
        terms=jnp.zeros((p - 2, flat[0].size), flat[0].dtype),
        kernels=kernels,
    )


def rates_at(dynamics: DenseHierarchy, state: Levels) -> Rates:
    """g and −(K̃⁽²⁾ − K⁽²⁾_0) · g at a state."""
    slope = dynamics.output_gradient(state[0])
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

    def panel(
        now: Integrals, inputs: tuple[Rates, Scalar]
    ) -> tuple[Integrals, Integrals]:
        new = _over_panel(flat, rule, now, *inputs)
        # Kernels are needed at the end alone.
        return new, eqx.tree_at(lambda i: i.kernels, new, ())

    return jax.lax.scan(panel, start, (rates, widths))


def _over_panel(
    flat: Levels, rule: Rule, now: Integrals, rates: Rates, width: Scalar
) -> Integrals:
    p, g = len(flat), rates.slope
    inner = width * jnp.asarray(rule.partial, g.dtype)
    whole = width * jnp.asarray(rule.weights, g.dtype)

    def along(start: Array, rate: Array) -> tuple[Array, Array]:
        """An integral at the nodes, and at the panel's end."""
        at_nodes = jnp.expand_dims(start, 0) + jnp.tensordot(inner, rate, axes=1)
        return at_nodes, start + jnp.tensordot(whole, rate, axes=1)

    total, slope = along(now.slope, g)
    # K⁽ʳ⁾_1 at the nodes, r = 2 … p − 2: one product with six vectors.
    level = [-_times(flat[r], total) for r in range(2, p - 1)]
    term_rates, kernels = [], []
    for k in range(2, p - 1):
        term_rates.append(-_times_each(level[0], g))
        advanced = [
            along(start, -_times_each(above, g))
            for start, above in zip(
                now.kernels[k - 2] if k < p - 2 else (), level[1:], strict=True
            )
        ]
        level = [at_nodes for at_nodes, _ in advanced]
        kernels.append(tuple(end for _, end in advanced))
    if p > 2:
        term_rates.append(
            rates.kernel_motion - sum(term_rates, jnp.zeros_like(rates.kernel_motion))
        )
    ends = [
        along(term, rate)[1] for term, rate in zip(now.terms, term_rates, strict=True)
    ]
    terms = jnp.stack(ends) if ends else now.terms
    return Integrals(slope, terms, tuple(kernels[: len(now.kernels)]))


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
