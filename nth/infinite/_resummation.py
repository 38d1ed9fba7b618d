"""Averages of e^{−Kt} over a distribution of K, in place of its expansion."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._analytic.decay_integrals import eigendecomposition, relax_with
from ._finite_width import Corrections

# Each mean is over at least 2 · 2^_POINTS kernels, for which its error is about a
# hundredth of what the average adds.
_POINTS = 9
# Along eigenvectors of Θ with eigenvalues below this, relative to the largest, K does
# not fluctuate: there the error of its covariance is divided by too small a number.
_SMALLEST = 1e-6
# Kernels are evaluated together in groups of this size.
_TOGETHER = 64


class _Fluctuation(NamedTuple):
    """K = R exp(Σ_k z_k G_k − ½ Σ_k G_k²) Rᵀ with R Rᵀ = Θ and z ~ N(0, 1): positive,
    with the mean Θ and the covariance of `Corrections`, up to order 1/width²."""

    root: Float[Array, "m m"]
    modes: Float[Array, "k m m"]

    def kernel(self, z: Float[Array, " k"]) -> Float[Array, "m m"]:
        squares = jnp.einsum("kab,kbc->ac", self.modes, self.modes)
        values, vectors = jnp.linalg.eigh(jnp.tensordot(z, self.modes, 1) - squares / 2)
        half = self.root @ (vectors * jnp.exp(values / 2)[None])
        return half @ half.T

    def covariance(self) -> Float[Array, "m m m m"]:
        """Of the entries of K, to order 1/width."""
        changes = jnp.einsum("pa,kab,qb->kpq", self.root, self.modes, self.root)
        return jnp.einsum("kab,kcd->abcd", changes, changes)


def _fluctuation(of: Corrections) -> _Fluctuation:
    m = len(of.ntk)
    rates, vectors, _, _ = eigendecomposition(of.ntk)
    kept = rates > _SMALLEST * rates[-1]
    scales = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, rates, 1)), 0)
    inverse = scales[None] * vectors
    covariance = of.ntk_covariance
    for axis in range(4):
        covariance = jnp.moveaxis(
            jnp.tensordot(inverse, covariance, (0, axis)), 0, axis
        )
    covariance = covariance + jnp.swapaxes(covariance, 0, 1)
    covariance = (covariance + jnp.swapaxes(covariance, 2, 3)) / 4
    sizes, modes = jnp.linalg.eigh(covariance.reshape(m**2, m**2))
    # Of m² directions those that are antisymmetric have the size 0.
    most = m * (m + 1) // 2
    sizes, modes = sizes[::-1][:most], modes[:, ::-1][:, :most]
    modes = (jnp.sqrt(jnp.maximum(sizes, 0))[None] * modes).T.reshape(most, m, m)
    return _Fluctuation(jnp.sqrt(rates)[None] * vectors, modes)


def _normal_points(dimensions: int) -> Float[np.ndarray, "P k"]:
    """Points of a Sobol sequence, made Gaussian, and their negatives. Odd moments are
    exact, and second ones are made so: averages are exact to order 1/width."""
    from scipy.special import ndtri  # slow to import
    from scipy.stats import qmc

    exponent = max(_POINTS, (4 * dimensions - 1).bit_length())
    uniform = qmc.Sobol(dimensions, rng=0).random_base2(exponent)
    tiny = np.finfo(float).eps
    half = ndtri(np.clip(uniform, tiny, 1 - tiny))
    points = np.concatenate([half, -half])
    values, vectors = np.linalg.eigh(points.T @ points / len(points))
    return points @ (vectors / np.sqrt(values)) @ vectors.T


def averaged_law(
    corrections: Corrections, targets: Float[Array, " n"], ts: Float[Array, " T"]
) -> tuple[Float[Array, "T m"], Float[Array, "T m m"], Corrections]:
    """Mean and covariance of the outputs of linear training with a random NTK, and its
    statistics as corrections; the other statistics are those of infinite width."""
    dimensions = len(corrections.ntk) * (len(corrections.ntk) + 1) // 2
    points = jnp.asarray(_normal_points(dimensions), targets.dtype)
    mean, covariance, spread = _averages(corrections, targets, ts, points)
    none = jnp.zeros_like(spread)
    flat = jnp.zeros_like(corrections.ntk)
    limits = corrections.nngp, corrections.ntk, flat, flat
    of_ntk = Corrections(*limits, none, spread, none, none, none, corrections.change)
    return mean, covariance, of_ntk


@eqx.filter_jit
def _averages(
    corrections: Corrections,
    targets: Float[Array, " n"],
    ts: Float[Array, " T"],
    points: Float[Array, "P k"],
) -> tuple[Float[Array, "T m"], Float[Array, "T m m"], Float[Array, "m m m m"]]:
    fluctuation = _fluctuation(corrections)

    def moments(z: Float[Array, " k"]) -> tuple[Array, Array]:
        kernel = fluctuation.kernel(z)
        mean, covariance = _of_kernel(kernel, corrections.nngp, targets, ts)
        return mean, covariance + mean[:, :, None] * mean[:, None]

    def add(total: tuple[Array, Array], z: Array) -> tuple[tuple[Array, Array], None]:
        parts = jax.vmap(moments)(z)
        return jax.tree.map(lambda old, new: old + jnp.sum(new, 0), total, parts), None

    shape = (len(ts), len(corrections.ntk))
    zeros = jnp.zeros(shape, ts.dtype), jnp.zeros((*shape, shape[1]), ts.dtype)
    groups = points.reshape(-1, _TOGETHER, points.shape[1])
    totals, _ = jax.lax.scan(add, zeros, groups)
    mean, second = (total / len(points) for total in totals)
    covariance = second - mean[:, :, None] * mean[:, None]
    return mean, covariance, fluctuation.covariance()


def _of_kernel(
    kernel: Float[Array, "m m"],
    nngp: Float[Array, "m m"],
    targets: Float[Array, " n"],
    ts: Float[Array, " T"],
) -> tuple[Float[Array, "T m"], Float[Array, "T m m"]]:
    """Mean and covariance of outputs trained with one constant NTK."""
    n = len(targets)
    train, identity = kernel[:n, :n], jnp.eye(n, dtype=kernel.dtype)
    eigen = eigendecomposition(train)
    decay, integral = relax_with(train, eigen, ts / n, identity)
    moved = jnp.einsum("qk,tkl->tql", kernel[n:, :n], integral)
    learned = jnp.concatenate([identity[None] - decay, moved], axis=1)
    kept = jnp.pad(-learned, ((0, 0), (0, 0), (0, len(kernel) - n)))
    kept = kept + jnp.eye(len(kernel), dtype=kernel.dtype)[None]
    return learned @ targets, jnp.einsum("tac,cd,tbd->tab", kept, nngp, kept)
