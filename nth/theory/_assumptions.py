"""Numerical checks of Assumptions 2.1 and 2.2 of Huang & Yau (2020)."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, islice
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._dynamics.taylor_coefficients import Coefficients, best_coefficients, by_jvp
from .._internal.validation import (
    as_array,
    require_concrete,
    require_finite,
    require_integer,
    require_order,
    require_positive,
    require_supported_dtype,
)
from .._network.activations import elementwise_activation

# Nodes of the Gauss–Legendre rule on a cell: exact to rounding where σ is smooth.
_NODES = 6
# What σ⁽ʳ⁾ may gain over a cell beside the integral of its slope.
_JUMP = 1e-6
# How much the outer half of the range may add to a bound.
_GROWTH = 1.01
# The highest order by nested derivatives: the ninth of softplus take 20 s to compile,
# the eleventh 4 minutes.
_MOST_NESTED = 4
# Cells, and sets of inputs, that are looked at within minutes.
_MOST_CELLS = 1_000_000
_MOST_SAMPLES = 10_000_000
# Matrices that are decomposed together.
_AT_ONCE = 4096


class ActivationCheck(eqx.Module):
    """What [`nth.theory.check_activation`][] found, r = 1 … 2p*+1."""

    bounds: Float[np.ndarray, " r"]
    """C_r, the largest |σ⁽ʳ⁾| on the grid."""

    smooth: bool
    """Whether each σ⁽ʳ⁻¹⁾ gains over every cell what σ⁽ʳ⁾ integrates to."""

    bounded: tuple[bool, ...]
    """Whether the outer half of the range has no larger |σ⁽ʳ⁾| than the inner half."""

    radius: float
    """The grid runs over |x| ≤ radius."""

    @property
    def holds(self) -> bool:
        """Whether nothing was found against Assumption 2.1."""
        return self.smooth and all(self.bounded)


def check_activation(
    activation: str | Callable[[Array], Array],
    *,
    order: int = 2,
    radius: float = 20.0,
    cells: int = 2000,
) -> ActivationCheck:
    """Assumption 2.1 (Huang & Yau): σ smooth, |σ⁽ʳ⁾| ≤ C_r for 1 ≤ r ≤ 2p* + 1.

    Derivatives are exact, and looked at on a grid. That refutes; it does not prove. A
    kink, which no derivative shows, is found because over a cell σ⁽ʳ⁻¹⁾ must gain the
    integral of σ⁽ʳ⁾. So `"relu"` is refused, and `"gelu"` is not.

    **Arguments:**

    - `activation`: a name, or a function of an array, entry by entry.
    - `order`: p*, at least the level p that is to be used: from 1 to 12, or 4 for an
        activation with a derivative of its own (`jax.custom_jvp`, such as
        `jax.nn.softplus` has), whose derivatives are nested.
    - `radius`, `cells`: the grid, `cells` cells over |x| ≤ `radius`. An activation that
        turns within a cell looks as if it had a kink: give more cells.

    **Returns:** [`nth.theory.ActivationCheck`][].
    """
    function = elementwise_activation(activation, jnp.result_type(float))
    order = require_order("order", order, 1)
    count = 2 * (require_integer("cells", cells, 2, _MOST_CELLS) // 2)
    radius = require_positive("radius", radius)
    # Zero, where kinks like to be, lies inside a cell.
    edges = np.linspace(-radius, radius * (1 + 0.3 / count), count + 1)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges) / 2
    top = 2 * order + 1
    inner = edges[:-1, None] + half[:, None] * (1 + nodes)
    at_edges = _derivatives(function, edges, top)
    at_nodes = _derivatives(function, inner, top)
    gains = half * np.einsum("rcq,q->rc", at_nodes[1:], weights)
    jumps = np.abs(np.diff(at_edges[:-1], axis=1) - gains).max(axis=1)
    sizes = np.abs(at_nodes[1:]).max(axis=2)
    outer = np.abs(inner).min(axis=1) > radius / 2
    bounds, within = sizes.max(axis=1), sizes[:, ~outer].max(axis=1)
    tolerance = max(_JUMP, 1e3 * np.finfo(at_nodes.dtype).eps)
    scale = np.maximum(1, np.abs(at_edges[:-1]).max(axis=1))
    smooth = bool(np.all(jumps <= tolerance * scale))
    bounded = sizes[:, outer].max(axis=1) <= _GROWTH * within + tolerance
    return ActivationCheck(bounds, smooth, tuple(map(bool, bounded)), radius)


def _derivatives(
    function: Callable[[Array], Array], x: np.ndarray, top: int
) -> np.ndarray:
    """σ, σ′, …, up to the `top`-th, at each entry of x."""
    at = jnp.asarray(x, jnp.result_type(float))
    coefficients = _coefficients(function, at, top)
    steps = [jnp.ones_like(at)] + [jnp.zeros_like(at)] * (top - 1)
    found = eqx.filter_jit(lambda x, steps: coefficients(function, x, steps))(at, steps)
    require_concrete("activation", found, "theory.check_activation")
    return np.stack([math.factorial(r) * np.asarray(c) for r, c in enumerate(found)])


def _coefficients(
    function: Callable[[Array], Array], at: Float[Array, "..."], top: int
) -> Coefficients:
    """How to differentiate σ, which must be one function of each entry."""
    try:
        like = jax.eval_shape(function, at)
        coefficients = best_coefficients(function, at)
    except Exception as error:
        raise ValueError(
            f"activation failed for an array of shape {at.shape}; it must be a "
            f"function of an array, entry by entry: {error}"
        ) from error
    if getattr(like, "shape", None) != at.shape or like.dtype != at.dtype:
        raise ValueError(
            f"activation must map an array of shape {at.shape} and dtype {at.dtype}, "
            f"entry by entry, to another; it gave {like}."
        )
    if coefficients is by_jvp and top > 2 * _MOST_NESTED + 1:
        raise ValueError(
            f"order must be at most {_MOST_NESTED} for this activation, which has a "
            "derivative of its own, as the time to compile nested ones grows "
            f"exponentially; got {(top - 1) // 2}."
        )
    return coefficients


class DataCheck(eqx.Module):
    """What [`nth.theory.check_data`][] found, r = 1 … min(2p*+1, n)."""

    norms: tuple[float, float]
    """The smallest and the largest ‖x_a‖."""

    smallest: Float[np.ndarray, " r"]
    """c_r, the smallest singular value over r distinct inputs; 0 for r > d. Where
    `exact` is `False`, the smallest that was met, which c_r does not pass."""

    exact: tuple[bool, ...]
    """Whether all sets of r inputs were looked at."""

    looked_at: tuple[int, ...]
    """How many sets of r inputs were."""

    floor: float
    """The smallest singular value of all n inputs, which no c_r is below; 0 if n > d,
    where it says nothing."""

    @property
    def c(self) -> float:
        """The c of c < ‖x_a‖ < 1/c."""
        low, high = self.norms
        return min(low, 1 / high) if high > 0 else 0.0

    @property
    def holds(self) -> bool:
        """Whether every c_r is above rounding, as far as was looked."""
        eps = float(np.finfo(self.smallest.dtype).eps)
        return self.c > 0 and bool(np.all(self.smallest > 100 * eps * self.norms[1]))


def check_data(
    x: ArrayLike, *, order: int = 2, samples: int = 20_000, seed: int = 0
) -> DataCheck:
    """Assumption 2.2 (Huang & Yau): c < ‖x_a‖ < 1/c, and any r ≤ 2p* + 1 distinct
    inputs have a data matrix whose smallest singular value is at least c_r > 0.

    It asks for inputs of more than 2p* dimensions, no two of them parallel.

    **Arguments:**

    - `x`: training inputs, shape `(n, *in)`, each taken as one vector.
    - `order`: p* ≥ 1, at least the level p that is to be used.
    - `samples`: sets of r inputs to look at; all of them, if there are no more. Else so
        many are drawn, and what is found is a bound of c_r from above.
    - `seed`: for the draw.

    **Returns:** [`nth.theory.DataCheck`][].
    """
    array = require_finite("x", as_array("x", x))
    require_concrete("x", array, "theory.check_data")
    require_supported_dtype("x", array.dtype)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(
            f"x must have shape (n, *in), one input a row; got {array.shape}."
        )
    array = np.asarray(array).reshape(len(array), -1)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(float)
    n, d = array.shape
    top = 2 * require_integer("order", order, 1) + 1
    samples = require_integer("samples", samples, 1, _MOST_SAMPLES)
    rng = np.random.default_rng(require_integer("seed", seed, 0))
    smallest, exact, looked_at = [], [], []
    for r in range(1, min(top, n) + 1):
        total = math.comb(n, r)
        exact.append(total <= samples or r > d)
        looked_at.append(total if exact[-1] else samples)
        sets = combinations(range(n), r) if exact[-1] else _drawn(rng, n, r, samples)
        smallest.append(0.0 if r > d else _smallest(array, sets))
    norms = _norms(array)
    floor = float(np.linalg.svd(array, compute_uv=False)[-1]) if n <= d else 0.0
    return DataCheck(
        (float(norms.min()), float(norms.max())),
        np.asarray(smallest, array.dtype),
        tuple(exact),
        tuple(looked_at),
        floor,
    )


def _norms(x: np.ndarray) -> np.ndarray:
    """The norm of each row in float64, though the squares may not fit the dtype."""
    largest = np.abs(x).max(axis=1).astype(float)
    unit = x / np.where(largest > 0, largest, 1)[:, None]
    return largest * np.linalg.norm(unit, axis=1)


def _drawn(
    rng: np.random.Generator, n: int, r: int, samples: int
) -> Iterator[np.ndarray]:
    for _ in range(samples):
        yield rng.choice(n, r, replace=False)


def _smallest(x: np.ndarray, sets: Iterable[Any]) -> float:
    found = np.inf
    sets = iter(sets)
    while chunk := list(islice(sets, _AT_ONCE)):
        values = np.linalg.svd(x[np.asarray(chunk)], compute_uv=False)
        found = min(found, float(values[:, -1].min()))
    return found
