"""Nested time integrals of decaying exponentials, in closed form, to full accuracy.

Solutions as power series in the change of the kernel consist of them. They are divided
differences of e^{−ta}, and the textbook quotient loses all digits where two decay rates
coincide; here nearly equal numbers are never subtracted.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._custom_types import Scalar
from .._internal.eigenvalues import rounding_of

# For decay rates closer than _NEAR/t a series of positive terms is used. In float64 it
# needs _TERMS terms: 4³² 35!/(32! 3!)/36! < 1e-17.
_NEAR = 4.0
_TERMS = 32
# The number of terms that XLA fuses into one kernel: a loop over single terms writes
# each to memory and takes five times as long; more terms take long to compile.
_UNROLL = 8


def nested_decay(*rates: Float[Array, "..."], t: Scalar) -> Float[Array, "..."]:
    """h[a₁, …, a_k](t), the integral of e^{−a₁s₁ − … − a_k s_k} over all time
    intervals s₁, …, s_k ≥ 0 with sum t.

    So h[a](t) = e^{−at}, h[0, a](t) = ∫₀ᵗ e^{−as} ds, and h[a, b, …] is e^{−at}
    convolved with h[b, …]. It is (−1)^{k−1} times the divided difference of
    a ↦ e^{−at} at the rates (Hermite & Genocchi), and so symmetric in them. Rates are
    nonnegative and may coincide; their shapes have one rank and broadcast.
    """
    return _table(rates, t)[-1][0]


def decay_with_zero(
    *rates: Float[Array, "..."], t: Scalar
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """h[a₁, …, a_k](t) and h[0, a₁, …, a_k](t), at about the cost of the second."""
    *_, before, (last,) = _table((jnp.zeros_like(rates[0]), *rates), t)
    return before[-1], last


def _table(rates: tuple[Array, ...], t: Scalar) -> list[list[Array]]:
    """h of all sets of consecutive sorted rates, by the size of the set."""
    nodes = _ascending(rates)
    rows = [[jnp.exp(-t * node) for node in nodes]]
    for size in range(2, len(nodes) + 1):
        shorter = rows[-1]
        rows.append(
            [
                _join(nodes[i : i + size], shorter[i], shorter[i + 1], t)
                for i in range(len(nodes) - size + 1)
            ]
        )
    return rows


def _ascending(rates: tuple[Array, ...]) -> list[Array]:
    """The rates sorted elementwise by a sorting network, which XLA fuses with later
    operations; `jnp.sort` of a stack would write them to memory."""
    nodes = list(rates)
    for last in range(len(nodes) - 1, 0, -1):
        for i in range(last):
            low, high = nodes[i], nodes[i + 1]
            nodes[i], nodes[i + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
    return nodes


def _join(nodes: list[Array], left: Array, right: Array, t: Scalar) -> Array:
    """h of ascending `nodes`, from h of all but the last and of all but the first."""
    gap = nodes[-1] - nodes[0]
    far = t * gap > _NEAR
    quotient = (left - right) / jnp.where(far, gap, 1)
    return jnp.where(far, quotient, _series(nodes, jnp.where(far, 0, t)))


def _series(nodes: list[Array], t: Float[Array, "..."]) -> Array:
    """h by e^{−t a_k} t^{k−1} Σ_r H_r(x₁, …, x_{k−1})/(k−1+r)!, x_i = t(a_k − a_i) ≥ 0,
    with H_r the sum of all monomials of degree r: no term is negative."""
    x = jnp.broadcast_arrays(*(t * (nodes[-1] - node) for node in nodes[:-1]))
    power = len(x)

    def add(carry: Any, r: Array) -> tuple[Any, None]:
        # H_r(x₁…x_s) = H_r(x₁…x_{s−1}) + x_s H_{r−1}(x₁…x_s), each over (k−1+r)!.
        old, total = carry
        new: list[Array] = []
        for variable, term in zip(x, old, strict=True):
            new.append(variable * term / (power + r) + (new[-1] if new else 0))
        return (new, total + new[-1]), None

    first = jnp.ones_like(x[0]) / math.factorial(power)
    r = jnp.arange(1, _TERMS + 1, dtype=first.dtype)
    (_, total), _ = jax.lax.scan(add, ([first] * power, first), r, unroll=_UNROLL)
    return jnp.exp(-t * nodes[-1]) * t**power * total


class Eigen(NamedTuple):
    """A symmetric kernel without its negative eigenvalues: see `eigendecomposition`."""

    rates: Float[Array, " n"]
    """The eigenvalues as decay rates: 0 where they are negative."""

    modes: Float[Array, "n n"]
    null: Bool[Array, " n"]
    """Which rates are zero up to rounding error."""

    values: Float[Array, " n"]
    """The eigenvalues, in increasing order."""


def relax(
    kernel: Float[Array, "n n"], ts: Float[Array, " T"], start: Float[Array, "n c"]
) -> tuple[Float[Array, "T n c"], Float[Array, "T n c"]]:
    """e^{−Kt} · start and ∫₀ᵗ e^{−Ks} ds · start, for a symmetric K with no negative
    eigenvalue.

    At t = ∞ the second is K⁺ · start with the pseudo-inverse K⁺: zero eigenvalues do
    not contribute. Derivatives are exact also where eigenvalues coincide (Daleckii &
    Krein).
    """
    return relax_with(kernel, eigendecomposition(kernel), ts, start)


@jax.custom_jvp
def relax_with(
    kernel: Float[Array, "n n"],
    eigen: Eigen,
    ts: Float[Array, " T"],
    start: Float[Array, "n c"],
) -> tuple[Float[Array, "T n c"], Float[Array, "T n c"]]:
    """`relax`, given `eigendecomposition(kernel)`, which several calls can share."""
    rates, modes, null, _ = eigen
    inside = modes.T @ start

    def at(t: Scalar) -> tuple[Array, Array]:
        decay, integral = _filters(rates, null, t)
        return modes @ (decay[:, None] * inside), modes @ (integral[:, None] * inside)

    return jax.vmap(at)(ts)


@relax_with.defjvp
def _relax_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    _, (rates, modes, null, _), ts, start = primals
    d_kernel, _, d_ts, d_start = tangents
    turned = modes.T @ (d_kernel + d_kernel.T) @ modes / 2
    inside, d_inside = modes.T @ start, modes.T @ d_start
    pair = rates[:, None], rates[None, :]
    either_null = null[:, None] | null[None, :]

    def at(t: Scalar, d_t: Scalar) -> tuple[Array, Array]:
        decay, integral = (part[:, None] for part in _filters(rates, null, t))
        infinite = jnp.isinf(t)
        t = jnp.where(infinite, end_of_time(rates, null), t)
        # First divided differences of e^{−λt} and of ∫₀ᵗ e^{−λs} ds.
        slopes = -nested_decay(*pair, t=t), -nested_decay(0 * pair[0], *pair, t=t)
        moved = [
            jnp.where(infinite & either_null, 0, s) * turned @ inside for s in slopes
        ]
        speed = decay * inside * jnp.where(infinite, 0, d_t)
        d_decay = moved[0] + decay * d_inside - rates[:, None] * speed
        return modes @ d_decay, modes @ (moved[1] + integral * d_inside + speed)

    return relax_with(*primals), jax.vmap(at)(ts, d_ts)


def _filters(rates: Array, null: Array, t: Scalar) -> tuple[Array, Array]:
    """e^{−λt} and ∫₀ᵗ e^{−λs} ds; at t = ∞ the integral of a zero eigenvalue is 0."""
    infinite = jnp.isinf(t)
    t = jnp.where(infinite, 0, t)
    end = jnp.where(null, 0, 1 / jnp.where(null, 1, rates))
    decay = jnp.where(infinite, null.astype(rates.dtype), jnp.exp(-rates * t))
    integral = nested_decay(jnp.zeros_like(rates), rates, t=t)
    return decay, jnp.where(infinite, end, integral)


def eigendecomposition(kernel: Float[Array, "n n"]) -> Eigen:
    """The eigendecomposition of a symmetric `kernel`."""
    values, modes = jnp.linalg.eigh(kernel)
    rates = jnp.maximum(values, 0)
    return Eigen(rates, modes, rates <= rounding_of(rates), values)


def end_of_time(rates: Float[Array, " n"], null: Array) -> Scalar:
    """A time after which e^{−λt} is zero in floating point for every nonzero λ."""
    slowest = jnp.min(jnp.where(null, jnp.inf, rates))
    return jnp.where(jnp.isfinite(slowest), 800 / slowest, 0)
