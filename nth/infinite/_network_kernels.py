"""NNGP kernel and NTK of networks that are given as a list of layers."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._internal.precision import full_precision
from .._internal.validation import require_name
from .._kernels.infinite_width import InfiniteKernels
from .._network.activations import (
    ACTIVATIONS,
    elementwise_activation,
    refuse_derivative,
)
from .._network.memory import require_memory
from ._gaussian_moments import rule_for
from ._layer_moments import GAUSSIAN, Moments, Walk, first_moments
from ._layers import (
    AbstractLayer,
    Activation,
    GlobalAveragePool,
)
from ._nodes import require_enough_nodes, sufficient_nodes
from ._points import as_inputs, matching_inputs
from ._residual import all_layers, as_layers, propagate_through
from ._tiles import by_tiles

# Pairs of points are evaluated together up to this number of pairs of positions, which
# fits in a processor's cache; sums over nodes fill it with one pair.
_MOST_TOGETHER = 2**14
# The arrays over pairs of positions of one pair of points in memory.
_ARRAYS = 40


@full_precision
def network_kernels(
    layers: Sequence[AbstractLayer],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    parameterization: Literal["nth", "ntk", "standard"] = "nth",
    nodes: int | None = None,
) -> InfiniteKernels:
    r"""The NNGP kernel and the NTK of a network of layers, as its width goes to
    infinity: fully connected or convolutional, with residual connections.

    `layers` is a list of [`nth.infinite.Dense`][], [`nth.infinite.Conv`][],
    [`nth.infinite.Activation`][], [`nth.infinite.Residual`][],
    [`nth.infinite.Flatten`][] and [`nth.infinite.GlobalAveragePool`][]. All hidden
    layers have the same width, or number of channels, m → ∞; the last layer has
    independent outputs, and the kernels are those of one.

    With S(p, p′) the mean over channels of the second moments of activations at
    positions p of x and p′ of x′ (Novak et al. 2019; Arora et al. 2019; Yang 2019), a
    convolution with kernel places δ ∈ Δ gives

        Σ(p, p′) = σ_w²/|Δ| Σ_δ S(p + δ, p′ + δ) + σ_b²,
        Θ(p, p′) ← 1/|Δ| Σ_δ [s S + σ_w² Θ](p + δ, p′ + δ) + s_b,

    an activation S ← E φ(u) φ(v), Θ ← E φ′(u) φ′(v) ∘ Θ for (u, v) ~ N(0, Σ), a sum of
    branches adds S and Θ, flattening takes the mean over p = p′, and pooling that over
    all p and p′. Speeds s and s_b are those of [`nth.infinite.kernels`][]. In `"nth"`
    the first layer's Σ is the sum over its fan-in, not the mean; in `"standard"` s of a
    later layer is its fan-in divided by the width.

    **Arguments:**

    - `layers`: the network, ending in a `Dense`, or in a `Conv` that is pooled.
    - `x1`, `x2`: inputs, shapes `(n1, d)` or, for convolutions, `(n1, channels,
        *positions)`; `x2` is `x1` by default, which saves half of the work.
    - `parameterization`: as for [`nth.MLP`][].
    - `nodes`: as for [`nth.infinite.kernels`][].

    **Returns:** [`nth.infinite.InfiniteKernels`][], for [`nth.infinite.ensemble`][],
    [`nth.infinite.posterior`][] and [`nth.infinite.as_kernels`][].

    The time is proportional to the number of positions, and with
    `GlobalAveragePool` to its square, for each pair of points. Where ReLU follows
    `GlobalAveragePool` or another activation than ReLU, angles below 1e-7 (in float32
    1e-3) between two points count as 0.

    **Raises:** `ValueError` for invalid input, layers whose infinite width is not
    determined by second moments, or an activation that is too rough or too steep.
    """
    network = as_layers("layers", layers)
    left = as_inputs("x1", x1)
    right = None if x2 is None else matching_inputs(as_inputs("x2", x2), left)
    require_name("parameterization", parameterization, ("nth", "ntk", "standard"))
    functions = _functions(network, left.dtype)
    shape = (len(left), len(left if right is None else right))
    positions = math.prod(left.shape[2:])
    pairs = positions ** (2 if _compares_all(network) else 1)
    itemsize = left.dtype.itemsize
    require_memory(
        "x1",
        f"the kernels of {shape[0]} x {shape[1]} points with {positions} positions",
        itemsize * (4 * shape[0] * shape[1] + _ARRAYS * pairs),
        "Use fewer points, float32, or blocks of rows: some of the points as x1 and "
        "all of them as x2.",
    )
    # Scales are arguments of the compiled function, not constants.
    network = jax.tree.map(lambda scale: jnp.asarray(scale, left.dtype), network)
    options = (parameterization, _compares_all(network))
    both = left if right is None else jnp.concatenate([left, right])

    def change(count: int) -> Array:
        return _of_points(network, both, (*options, count))[1]

    closed = all(rule_for(function, 9).closed for function in functions)
    arguments = (network, both)
    count, amount = sufficient_nodes(nodes, arguments, None if closed else change)
    parts = _computed(network, left, right, (*options, count))
    return InfiniteKernels(*require_enough_nodes(parts, amount, count))


def _functions(
    network: tuple[AbstractLayer, ...], dtype: Any
) -> list[Callable[[Array], Array]]:
    """The activations of the layers, which are checked."""
    functions = []
    for layer in all_layers(network):
        if isinstance(layer, Activation):
            functions.append(elementwise_activation(layer.function, dtype))
            refuse_derivative(functions[-1], dtype)
    return functions


def _compares_all(network: tuple[AbstractLayer, ...]) -> bool:
    """Whether the kernel depends on moments at different positions."""
    return any(isinstance(layer, GlobalAveragePool) for layer in all_layers(network))


class _Tape:
    """The second moments of points after each layer, written while each point is
    propagated by itself, and read while pairs are."""

    def __init__(self, rows: Iterator[tuple[Array, Array]] | None = None):
        self.rows = rows
        self.written: list[Array] = []

    def __call__(self, cross: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        if self.rows is not None:
            return next(self.rows)
        count = math.prod(shape)
        own = cross
        if cross.ndim > len(shape):
            own = jnp.diagonal(cross.reshape(count, count)).reshape(shape)
        self.written.append(own)
        return own, own


def _propagated(
    network: tuple[AbstractLayer, ...],
    points: tuple[Float[Array, "c *space"], Float[Array, "c *space"]],
    options: tuple[str, bool, int],
    tape: _Tape,
) -> Moments:
    parameterization, all_positions, nodes = options
    by_angle = any(
        isinstance(layer, Activation) and layer.function is ACTIVATIONS["relu"]
        for layer in all_layers(network)
    )
    walk = Walk(parameterization, nodes, all_positions, by_angle, tape)
    moments = propagate_through(network, first_moments(walk, *points), walk)
    if moments.kind != GAUSSIAN or moments.shape:
        raise ValueError(
            f"layers end in {moments.kind} with positions {moments.shape}: let the "
            "last layer be Dense(), or a Conv that GlobalAveragePool() follows."
        )
    return moments


@eqx.filter_jit
def _of_points(
    network: tuple[AbstractLayer, ...],
    x: Float[Array, "n c *space"],
    options: tuple[str, bool, int],
) -> tuple[list[Float[Array, "n ..."]], Float[Array, ""]]:
    """The second moments of each point after each layer, and the largest error
    estimate of an integral."""

    def of_point(point: Array) -> tuple[list[Array], Array]:
        tape = _Tape()
        moments = _propagated(network, (point, point), options, tape)
        return tape.written, moments.change

    rows, changes = jax.lax.map(of_point, x, batch_size=_together(network, x, options))
    return rows, jnp.max(changes)


@eqx.filter_jit
def _computed(
    network: tuple[AbstractLayer, ...],
    left: Float[Array, "n1 c *space"],
    right: Float[Array, "n2 c *space"] | None,
    options: tuple[str, bool, int],
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """The kernels, tile by tile. What depends on one point is computed once for each
    side of a tile, not for each pair: it stays outside of the inner `vmap`."""
    sides = [(left, _of_points(network, left, options)[0])]
    sides.append(
        sides[0] if right is None else (right, _of_points(network, right, options)[0])
    )

    def of_pair(first: Any, second: Any) -> tuple[Array, Array]:
        (x1, rows1), (x2, rows2) = first, second
        tape = _Tape(zip(rows1, rows2, strict=True))
        moments = _propagated(network, (x1, x2), options, tape)
        return moments.cross, moments.ntk

    pairs = jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))

    def of_tile(corner: list[Array], shape: list[int]) -> tuple[Array, Array]:
        parts = [
            jax.tree.map(
                partial(jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=size),
                side,
            )
            for side, at, size in zip(sides, corner, shape, strict=True)
        ]
        return pairs(*parts)

    points = len(sides[0][0]), len(sides[1][0])
    most = max(1, math.isqrt(_together(network, left, options)))
    return by_tiles(of_tile, points, most, left.dtype, symmetric=right is None)


def _together(
    network: tuple[AbstractLayer, ...],
    x: Float[Array, "n c *space"],
    options: tuple[str, bool, int],
) -> int:
    """The number of pairs of points evaluated together."""
    _, all_positions, nodes = options
    pairs = math.prod(x.shape[2:]) ** (2 if all_positions else 1)
    closed = all(rule_for(f, nodes).closed for f in _functions(network, x.dtype))
    return max(1, _MOST_TOGETHER // max(1, pairs)) if closed else 1
