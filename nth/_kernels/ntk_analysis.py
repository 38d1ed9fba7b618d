"""Analysis of the NTK: eigenvalues, time scales, layers and last-layer features."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._internal.eigenvalues import require_symmetric, rounding_of
from .._internal.precision import full_precision
from .._internal.validation import require_finite, require_instance, require_scale
from .._network.base import OutputFunction, trainable
from .._network.finiteness import checked_finite, require_finite_result
from .._network.memory import require_memory
from .._network.mlp import MLP
from .._problem.problem import Problem
from .assembly import form
from .evaluation import Points, points_of
from .infinite_width import InfiniteKernels, on_training_points
from .kernels import Kernels, require_all_outputs, require_ntk
from .mlp_derivatives import forward


class Spectrum(eqx.Module):
    """Eigenvalues of the NTK on the training points: see [`nth.spectrum`][].

    In decreasing order of eigenvalue; s = n·C is the number of slots.
    """

    eigenvalues: Float[Array, " s"]
    """λ_i of K⁽²⁾ on the training points."""

    modes: Float[Array, "s n *out"]
    """Eigenvectors e_i, of unit norm."""

    time_scales: Float[Array, " s"]
    """n/λ_i, in units of 1/(learning rate): the time in which ⟨e_i, f − y⟩ decreases by
    a factor e at level p = 2 with squared error. ∞ where λ_i is zero up to rounding
    error."""


@full_precision
def spectrum(kernels: Kernels | InfiniteKernels) -> Spectrum:
    """Eigenvalues of the NTK on the training points, and their time scales.

    With squared error and a constant NTK, f(t) = y + e^{−K⁽²⁾t/n}(f₀ − y) (Huang & Yau,
    eq. 6), so the residual along each eigenvector decays independently. The spectrum of
    kernels with `outputs="trace"` is that of the mean of the outputs' kernels, with one
    slot for each training point, and is the spectrum of each output's residual where
    all outputs have that kernel and none acts on another, as at infinite width. All
    points of [`nth.infinite.InfiniteKernels`][] are training points.

    **Arguments:** `kernels`, from [`nth.kernels`][] or [`nth.infinite.kernels`][].

    **Returns:** [`nth.Spectrum`][].

    **Raises:** `ValueError` if `kernels` is not a [`nth.Kernels`][] of all points,
    contains NaN or has `outputs="diagonal"`, or if the eigenvectors would not fit in
    memory.
    """
    kernels = on_training_points(kernels)
    require_instance("kernels", kernels, Kernels, "nth.kernels(...)")
    require_ntk(kernels)
    if not kernels.complete:
        raise ValueError(
            "kernels were formed with rows=..., and a spectrum takes all training "
            "points: form them again without rows."
        )
    if kernels.outputs == "diagonal":
        require_all_outputs(kernels, "a spectrum")
    cure = "form them by nth.kernels, where the network is finite and differentiable."
    (ntk,) = checked_finite("kernels", [kernels[2]], cure)
    out = kernels.out_shape if kernels.outputs == "full" else ()
    n = ntk.shape[1 + len(out)]
    slots = n * int(np.prod(out))
    require_memory(
        "kernels",
        f"the eigenvectors of {slots} training slots",
        4 * slots**2 * ntk.dtype.itemsize,
        "Use fewer training points or float32, or nth.project for some eigenvectors.",
    )
    square = ntk[:n].reshape(slots, slots)
    require_symmetric("kernels", square, "Form them by nth.kernels.")
    values, vectors = jnp.linalg.eigh(square)
    values, modes = values[::-1], vectors[:, ::-1].T.reshape(slots, n, *out)
    above = values > rounding_of(values)
    times = jnp.where(above, n / jnp.where(above, values, 1.0), jnp.inf)
    return Spectrum(values, modes, times)


@full_precision
def layer_kernels(
    network: Callable[..., Any],
    problem: Problem,
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> dict[str, Float[Array, "m ..."]]:
    """The contribution G⁽ˡ⁾ of each parameter array to the NTK (Huang & Yau, eq. 7).

        G⁽ˡ⁾[a, b] = ⟨∂f_a/∂W⁽ˡ⁾, ∂f_b/∂W⁽ˡ⁾⟩,    K⁽²⁾ = Σ_l G⁽ˡ⁾

    **Arguments:** as for [`nth.kernels`][].

    **Returns:** one kernel for each trained array, keyed by its path in the network:
    `".weights[0]"`, `".weights[1]"` and so on for an [`nth.MLP`][] without biases.

    **Raises:** `ValueError` for a network that does not fit, or kernels that are not
    finite or would not fit in memory.
    """
    points = points_of(trainable(network, problem, filter_spec, learning_rates))
    leaves = jax.tree_util.tree_leaves_with_path(points.params)
    entries = points.n_rows * points.n_slots
    require_memory(
        "problem",
        f"{len(leaves)} kernels of {points.n_rows} x {points.n_slots} slots",
        len(leaves) * entries * points.output.dtype.itemsize,
        "Use fewer points, float32, or a filter_spec that trains fewer arrays.",
    )
    parts = {}
    for path, _ in leaves:
        alone = _training_only(points, path)
        parts[jax.tree_util.keystr(path)] = form(alone, 2, None, progress=False)[1]
    at = (points.apply, points.params, points.x, points.n_train)
    require_finite_result("a part of K(2)", parts, *at)
    return parts


def _training_only(points: Points, path: Any) -> Points:
    """`points` with all parameters except the one at `path` frozen."""
    where = jax.tree_util.tree_map_with_path(lambda p, _: p == path, points.params)
    params, others = eqx.partition(points.params, where)
    apply = OutputFunction(points.apply.network(others), points.output)
    x = (points.x_train, points.x_extra)
    rates = None if points.rates is None else eqx.filter(points.rates, where)
    return Points(apply, params, *x, with_train=points.with_train, rates=rates)


@full_precision
def nngp(
    network: Callable[..., Any],
    problem: Problem,
    *,
    sigma_a: float = 1.0,
    sigma_b: float = 1.0,
) -> Float[Array, "m n"]:
    """The finite-width NNGP kernel: the covariance of outputs over the last layer.

    With x_a the inputs of the last layer at point a, and its parameters redrawn, the
    outputs f = aᵀx + b have mean 0 and, for each output, covariance

        Σ[a, b] = σ_a² x_a·x_b (+ σ_b²),

    with the first term divided by fan_in in the parameterizations "ntk" and "standard",
    and σ_b² if there is a bias. With increasing width it converges to the NNGP kernel
    (Lee et al. 2018).

    **Arguments:**

    - `network`: an [`nth.MLP`][] or `eqx.nn.MLP` (taken as "standard", with no final
        activation).
    - `problem`: the points.
    - `sigma_a`, `sigma_b`: scales of the last layer's weights and bias, as for
        [`nth.MLP`][].

    **Returns:** Σ, of shape `(m, n)`, all points against the training points.

    **Raises:** `ValueError` if `network` is none of these.
    """
    sigma_a = require_scale("sigma_a", sigma_a)
    sigma_b = require_scale("sigma_b", sigma_b)
    points = points_of(trainable(network, problem, eqx.is_inexact_array))
    layers = points.layers(points.params)
    if layers is None or layers[-1].activation is not None:
        raise ValueError(
            "network must be an nth.MLP or eqx.nn.MLP with an affine last layer: the "
            f"NNGP kernel is of that layer's inputs; got {type(network).__name__}."
        )
    features = forward(layers, points.x)[-1]
    fan_in = features.shape[1]
    paper = isinstance(network, MLP) and network.parameterization == "nth"
    # A product, since an overflowing power of a Python float raises OverflowError.
    weight = sigma_a * sigma_a / (1 if paper else fan_in)
    bias = 0.0 if layers[-1].bias is None else sigma_b * sigma_b
    kernel = weight * (features @ features[: points.n_train].T) + bias
    cure = "give smaller sigma_a and sigma_b, or smaller inputs and parameters."
    return require_finite("the NNGP kernel", kernel, cure)
