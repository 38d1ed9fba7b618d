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
from .._internal.precision import full_precision
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

# The number of Gauss–Legendre nodes in a cell: exact up to rounding for a smooth σ.
_NODES = 6
# The tolerance for the increase of σ⁽ʳ⁾ over a cell minus the integral of σ⁽ʳ⁺¹⁾.
_JUMP = 1e-6
# The factor by which the outer half of the range may exceed the bound of the inner
# half.
_GROWTH = 1.01
# The highest order with nested derivatives: the ninth derivative of softplus takes 20 s
# to compile, the eleventh 4 minutes.
_MOST_NESTED = 4
# The numbers of cells and of sets of inputs that can be checked within minutes.
_MOST_CELLS = 1_000_000
_MOST_SAMPLES = 10_000_000
# The number of matrices decomposed together.
_AT_ONCE = 4096


class ActivationCheck(eqx.Module):
    """The result of [`nth.theory.check_activation`][], for r = 1 … 2p*+1."""

    bounds: Float[np.ndarray, " r"]
    """C_r: the largest |σ⁽ʳ⁾| on the grid."""

    smooth: bool
    """Whether σ⁽ʳ⁻¹⁾ increases over every cell by the integral of σ⁽ʳ⁾, for each r."""

    bounded: tuple[bool, ...]
    """Whether |σ⁽ʳ⁾| is no larger in the outer half of the range than in the inner."""

    radius: float
    """The grid runs over |x| ≤ radius."""

    @property
    def holds(self) -> bool:
        """Whether no violation of Assumption 2.1 was found."""
        return self.smooth and all(self.bounded)


def check_activation(
    activation: str | Callable[[Array], Array],
    *,
    order: int = 2,
    radius: float = 20.0,
    cells: int = 2000,
) -> ActivationCheck:
    """Assumption 2.1 (Huang & Yau): σ smooth, |σ⁽ʳ⁾| ≤ C_r for 1 ≤ r ≤ 2p* + 1.

    Derivatives are exact and evaluated on a grid, so the check can refute the
    assumption but not prove it. A kink is detected because σ⁽ʳ⁻¹⁾ must increase over a
    cell by the integral of σ⁽ʳ⁾. So `"relu"` fails the check, and `"gelu"` passes it.

    **Arguments:**

    - `activation`: a name, or an elementwise function of an array.
    - `order`: p*, at least the level p to be used: from 1 to 12, or at most 4 for an
        activation with a custom derivative (`jax.custom_jvp`, as in
        `jax.nn.softplus`), whose derivatives are nested.
    - `radius`, `cells`: the grid, `cells` cells over |x| ≤ `radius`. An activation that
        varies strongly within a cell appears to have a kink: use more cells.

    **Returns:** [`nth.theory.ActivationCheck`][].

    **Raises:** `ValueError` for an activation that is not elementwise or cannot be
    differentiated so often, or an invalid order or grid.
    """
    function = elementwise_activation(activation, jnp.result_type(float))
    order = require_order("order", order, 1)
    count = 2 * (require_integer("cells", cells, 2, _MOST_CELLS) // 2)
    radius = require_positive("radius", radius)
    # Zero, the most common place of a kink, lies inside a cell.
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
    values = eqx.filter_jit(lambda x, steps: coefficients(function, x, steps))(
        at, steps
    )
    require_concrete("activation", values, "theory.check_activation")
    return np.stack([math.factorial(r) * np.asarray(c) for r, c in enumerate(values)])


def _coefficients(
    function: Callable[[Array], Array], at: Float[Array, "..."], top: int
) -> Coefficients:
    """The method of differentiating σ, which must be elementwise."""
    try:
        like = jax.eval_shape(function, at)
        coefficients = best_coefficients(function, at)
    except Exception as error:
        raise ValueError(
            f"activation failed for an array of shape {at.shape}; it must be an "
            f"elementwise function of an array: {error}"
        ) from error
    if getattr(like, "shape", None) != at.shape or like.dtype != at.dtype:
        raise ValueError(
            f"activation must map an array of shape {at.shape} and dtype {at.dtype} "
            f"elementwise to an array; it returned {like}."
        )
    if coefficients is by_jvp and top > 2 * _MOST_NESTED + 1:
        raise ValueError(
            f"order must be at most {_MOST_NESTED} for this activation, which has a "
            "custom derivative, as the time to compile nested derivatives grows "
            f"exponentially; got {(top - 1) // 2}."
        )
    return coefficients


class DataCheck(eqx.Module):
    """The result of [`nth.theory.check_data`][], for r = 1 … min(2p*+1, n)."""

    norms: tuple[float, float]
    """The smallest and the largest ‖x_a‖."""

    smallest: Float[np.ndarray, " r"]
    """c_r, the smallest singular value over r distinct inputs; 0 for r > d. Where
    `exact` is `False`, the smallest among the sampled sets, an upper bound of c_r."""

    exact: tuple[bool, ...]
    """Whether all sets of r inputs were evaluated."""

    num_evaluated: tuple[int, ...]
    """The number of sets of r inputs that were evaluated."""

    floor: float
    """The smallest singular value of all n inputs, a lower bound of every c_r; 0, which
    is no information, if n > d."""

    @property
    def c(self) -> float:
        """The c of c < ‖x_a‖ < 1/c."""
        low, high = self.norms
        return min(low, 1 / high) if high > 0 else 0.0

    @property
    def holds(self) -> bool:
        """Whether every c_r is above rounding error, for the evaluated sets."""
        eps = float(np.finfo(self.smallest.dtype).eps)
        return self.c > 0 and bool(np.all(self.smallest > 100 * eps * self.norms[1]))


@full_precision
def check_data(
    x: ArrayLike, *, order: int = 2, samples: int = 20_000, seed: int = 0
) -> DataCheck:
    """Assumption 2.2 (Huang & Yau): c < ‖x_a‖ < 1/c, and any r ≤ 2p* + 1 distinct
    inputs have a data matrix whose smallest singular value is at least c_r > 0.

    It requires inputs of more than 2p* dimensions, no two of them parallel.

    **Arguments:**

    - `x`: training inputs, shape `(n, *in)`, each flattened to a vector.
    - `order`: p* ≥ 1, at least the level p to be used.
    - `samples`: the largest number of sets of r inputs to evaluate. If there are more
        sets, this number of them is sampled, and the result is an upper bound of c_r.
    - `seed`: the seed of the sampling.

    **Returns:** [`nth.theory.DataCheck`][].

    **Raises:** `ValueError` for inputs that are not finite or have no shape `(n, *in)`,
    or an invalid number.
    """
    array = require_finite("x", as_array("x", x))
    require_concrete("x", array, "theory.check_data")
    require_supported_dtype("x", array.dtype)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(
            f"x must have shape (n, *in), one input in each row; got {array.shape}."
        )
    array = np.asarray(array).reshape(len(array), -1)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(float)
    n, d = array.shape
    top = 2 * require_integer("order", order, 1) + 1
    samples = require_integer("samples", samples, 1, _MOST_SAMPLES)
    rng = np.random.default_rng(require_integer("seed", seed, 0))
    smallest, exact, num_evaluated = [], [], []
    for r in range(1, min(top, n) + 1):
        total = math.comb(n, r)
        exact.append(total <= samples or r > d)
        num_evaluated.append(total if exact[-1] else samples)
        sets = combinations(range(n), r) if exact[-1] else _drawn(rng, n, r, samples)
        smallest.append(0.0 if r > d else _smallest(array, sets))
    norms = _norms(array)
    floor = float(np.linalg.svd(array, compute_uv=False)[-1]) if n <= d else 0.0
    return DataCheck(
        (float(norms.min()), float(norms.max())),
        np.asarray(smallest, array.dtype),
        tuple(exact),
        tuple(num_evaluated),
        floor,
    )


def _norms(x: np.ndarray) -> np.ndarray:
    """The norm of each row in float64; squares may overflow in the dtype of `x`."""
    largest = np.abs(x).max(axis=1).astype(float)
    unit = x / np.where(largest > 0, largest, 1)[:, None]
    return largest * np.linalg.norm(unit, axis=1)


def _drawn(
    rng: np.random.Generator, n: int, r: int, samples: int
) -> Iterator[np.ndarray]:
    for _ in range(samples):
        yield rng.choice(n, r, replace=False)


def _smallest(x: np.ndarray, sets: Iterable[Any]) -> float:
    smallest = np.inf
    sets = iter(sets)
    while chunk := list(islice(sets, _AT_ONCE)):
        values = np.linalg.svd(x[np.asarray(chunk)], compute_uv=False)
        smallest = min(smallest, float(values[:, -1].min()))
    return smallest
