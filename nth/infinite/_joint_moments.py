"""Gaussian means of products of an activation's derivatives at two and four points.

E φ⁽ⁱ⁾(z₁) φ⁽ʲ⁾(z₂) … over Gaussian (z₁, z₂, …), by the trapezoidal rule in as many
dimensions as there are different points. With a triangular root of the covariance the
k-th point depends on the first k nodes only, so that the sums are taken one after
another, from the last.
"""

from functools import partial
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._network.activations import ACTIVATIONS
from ._gaussian_moments import RADIUS, Function

# The number of derivatives, φ among them, in moments of two points and of four.
_PAIR_ORDERS, _ORDERS = 6, 4
# Sums over one to four dimensions have these multiples of the number of nodes: few
# dimensions are cheap.
_MULTIPLES = {1: 5, 2: 5, 3: 1.5, 4: 1}


class Line(NamedTuple):
    """Nodes and weights for the standard Gaussian measure."""

    nodes: Float[Array, " N"]
    weights: Float[Array, " N"]


def _line(activation: Function, nodes: int, dimensions: int, dtype: np.dtype) -> Line:
    """The rule in each of some dimensions: Gauss–Hermite, which is exact, for
    `"linear"`, and otherwise the trapezoidal rule.

    For a φ that is analytic within s of the real line the error of the trapezoidal rule
    is about e^{−2πs/(h√a)}, h the spacing of the nodes (Trefethen & Weideman 2014), and
    e^{−r²/2} for what is outside of the radius r. The radius is where both errors of
    tanh are about equal at a = 1.
    """
    if activation is ACTIVATIONS["linear"]:
        x, weights = np.polynomial.hermite_e.hermegauss(5)
    else:
        count = int(_MULTIPLES[dimensions] * nodes)
        radius = min((4.1 * (count - 1)) ** (1 / 3), RADIUS)
        x = np.linspace(-radius, radius, count)
        weights = np.exp(-(x**2) / 2)
    weights = weights / weights.sum()
    return Line(jnp.asarray(x, dtype), jnp.asarray(weights, dtype))


def pair_moments(
    activation: Function, nodes: int, covariance: Float[Array, "n n"]
) -> Float[Array, "6 6 n n"]:
    """E φ⁽ⁱ⁾(z_a) φ⁽ʲ⁾(z_b) as entry [i, j, a, b]."""
    n = len(covariance)
    full = jnp.zeros((n, n, _PAIR_ORDERS, _PAIR_ORDERS), covariance.dtype)
    for table, sets in _tables(activation, nodes, covariance, 2, _PAIR_ORDERS):
        i, j = sets.T
        full = full.at[i, j].set(table).at[j, i].set(jnp.swapaxes(table, 1, 2))
    return jnp.moveaxis(full, (0, 1), (2, 3))


class JointMoments(NamedTuple):
    """E φ⁽ⁱ⁾(z_a) φ⁽ʲ⁾(z_b) φ⁽ᵏ⁾(z_c) φ⁽ˡ⁾(z_d), as `moments(i, j, k, l)`."""

    table: Float[Array, "S 4 4 4 4"]
    """One entry for each set of four points, in the order of `_sorting`."""

    points: int

    def __call__(self, *orders: int) -> Float[Array, "n n n n"]:
        """The moments of all points, of shape `(n, n, n, n)`."""
        n = self.points
        slots = np.array(list(product(range(n), repeat=4)))
        # Sorting the points of a moment sorts the orders of its derivatives with them.
        sorting = _sorting(slots)
        rows = np.zeros((n,) * 4, int)
        sets = np.concatenate([part for _, part in _kinds(n, 4)])
        rows[tuple(sets.T)] = np.arange(len(sets))
        at = rows[tuple(np.take_along_axis(slots, sorting, 1).T)]
        columns = np.asarray(orders)[sorting].T
        return self.table[(at, *columns)].reshape(n, n, n, n)


def joint_moments(
    activation: Function, nodes: int, covariance: Float[Array, "n n"]
) -> JointMoments:
    """The moments at each four points."""
    tables = _tables(activation, nodes, covariance, 4, _ORDERS)
    return JointMoments(jnp.concatenate([t for t, _ in tables]), len(covariance))


def _sorting(rows: Int[np.ndarray, "R slots"]) -> Int[np.ndarray, "R slots"]:
    """The order of the points of each row: the most frequent first, and equal ones
    together."""
    counts = np.sum(rows[:, :, None] == rows[:, None], axis=2)
    return np.lexsort((rows, -counts), axis=1)


def _kinds(n: int, slots: int) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Each set of points once, in the order of `_sorting`, by how often its different
    points occur."""
    kinds: dict[tuple[int, ...], list[np.ndarray]] = {}
    rows = np.array(list(combinations_with_replacement(range(n), slots)))
    for row in np.take_along_axis(rows, _sorting(rows), 1):
        counts = np.unique(row, return_counts=True)[1].tolist()
        kinds.setdefault(tuple(sorted(counts, reverse=True)), []).append(row)
    return [(counts, np.array(rows)) for counts, rows in kinds.items()]


def _tables(
    activation: Function,
    nodes: int,
    covariance: Float[Array, "n n"],
    slots: int,
    orders: int,
) -> list[tuple[Float[Array, "S ..."], np.ndarray]]:
    """Tables of moments, one axis for each slot, and the points in the slots."""
    tables = []
    for counts, sets in _kinds(len(covariance), slots):
        line = _line(activation, nodes, len(counts), np.dtype(covariance.dtype))
        different = sets[:, np.cumsum((0, *counts[:-1]))]
        blocks = covariance[different[:, :, None], different[:, None]]
        table = _of_kind(activation, line, blocks, counts, orders)
        tables.append((table, sets))
    return tables


@eqx.filter_jit
def _of_kind(
    activation: Function,
    line: Line,
    covariances: Float[Array, "S k k"],
    counts: tuple[int, ...],
    orders: int,
) -> Float[Array, "S ..."]:
    roots = jax.vmap(_triangular_root)(covariances)
    table = partial(_table, activation, line, counts, orders)
    return jax.lax.map(table, roots)


def _table(
    activation: Function,
    line: Line,
    counts: tuple[int, ...],
    orders: int,
    root: Float[Array, "k k"],
) -> Float[Array, "..."]:
    """The sums over nodes, for points that are in a row as often as `counts` says."""
    x, weights = line
    total = jnp.ones((1,) * (len(root) + 1), x.dtype)
    for k in reversed(range(len(root))):
        shapes = np.where(np.eye(k + 1, dtype=bool), len(x), 1)
        grids = [x.reshape(shapes[i]) * root[k, i] for i in range(k + 1)]
        once = derivatives(activation, sum(grids[1:], grids[0]), orders)
        values = once
        for _ in range(counts[k] - 1):
            values = values[:, None] * once[None]
            values = values.reshape(-1, *once.shape[1:])
        total = jnp.broadcast_to(total, (len(total), *once.shape[1:]))
        total = jnp.einsum("i...x,r...x,x->ir...", values, total, weights)
        total = total.reshape(-1, *once.shape[1:-1])
    return total.reshape((orders,) * sum(counts))


def derivatives(function: Function, z: Array, count: int) -> Float[Array, "count ..."]:
    """φ, φ′, … , as many as `count`."""

    def of_order(order: int) -> Function:
        if order == 0:
            return function
        lower = of_order(order - 1)
        return lambda z: jax.jvp(lower, (z,), (jnp.ones_like(z),))[1]

    return jnp.stack([of_order(order)(z) for order in range(count)])


def _triangular_root(covariance: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """L with L Lᵀ = covariance, for a matrix that may be singular.

    A pivot that is zero up to rounding error adds no direction: the point is a linear
    combination of those before it.
    """
    size = len(covariance)
    tolerance = 8 * jnp.finfo(covariance.dtype).eps
    rest, columns = covariance, []
    for k in range(size):
        pivot = rest[k, k]
        positive = pivot > tolerance * covariance[k, k]
        root = jnp.sqrt(jnp.where(positive, pivot, 1))
        column = jnp.where(positive, rest[:, k] / root, 0)
        column = jnp.where(jnp.arange(size) < k, 0, column)
        columns.append(column)
        rest = rest - column[:, None] * column[None]
    return jnp.stack(columns, axis=1)
