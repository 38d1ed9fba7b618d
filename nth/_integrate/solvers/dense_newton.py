"""Linear equations (I − aJ) δ = b with the Jacobian J of the dense hierarchy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._custom_types import Scalar
from ..._dynamics.dense import DenseHierarchy, Levels
from .output_space import output_hessian, times_blocks

# Slots are flattened, as in `output_space`.
Flat = tuple[Float[Array, "all_slots ..."], ...]


class NewtonMatrix(eqx.Module):
    """I − aJ at a state y = (f, K̃⁽²⁾, …, K̃⁽ᵖ⁻¹⁾) of the hierarchy, factorized.

    With g the output gradient and H = ∂g/∂f, one block for each training point, row r
    of (I − aJ) δ = b reads

        δ_r + a (K̃⁽ʳ⁺¹⁾ · Hδf + δ_{r+1} · g) = b_r,        δ_p = 0.

    Substitution from r = p−1 down to 1 leaves an equation for δf on the training points
    alone, of n·C unknowns: S δf = β₁, where β_{p−1} = b_{p−1} and, below,
    β_r = b_r − a β_{r+1} · g, and

        S = I + a Σ_{r=2}^{p} (−a)^{r−2} B_r H,    B_r = K̃⁽ʳ⁾ with g in slots 2 … r−1.

    The other entries of δ follow by substitution back.
    """

    levels: Flat
    """f, K̃⁽²⁾, …, K⁽ᵖ⁾ with flattened slots."""

    a: Scalar
    slope: Float[Array, " slots"]
    """g."""

    hessian: Float[Array, "n C C"]
    """The blocks of H."""

    reduced: tuple[Float[Array, "slots slots"], ...]
    """B_2, …, B_p on the training points."""

    factors: tuple[Array, Array]
    """The LU factors of S."""

    def __init__(self, dynamics: DenseHierarchy, state: Levels, a: Scalar):
        self.levels = flatten(dynamics, (*state, dynamics.levels[-1]))
        self.a = a
        self.slope = dynamics.output_gradient(state[0]).reshape(-1)
        self.hessian = output_hessian(dynamics, state[0])
        self.reduced = tuple(_reduced(k, self.slope) for k in self.levels[1:])
        matrix = jnp.zeros_like(self.reduced[0])
        for kernel in reversed(self.reduced):  # Horner's rule in −a
            matrix = kernel - a * matrix
        matrix = a * times_blocks(matrix, self.hessian)
        one = jnp.eye(self.slope.size, dtype=matrix.dtype)
        self.factors = jax.scipy.linalg.lu_factor(one + matrix)

    def solve(self, b: Flat, v: Float[Array, " slots"]) -> Flat:
        """δ with (I − aJ) δ = b − a (0, …, 0, K⁽ᵖ⁾ · v).

        The second part of the right-hand side costs no further product with K⁽ᵖ⁾, the
        largest array.
        """
        a, slope, size, top = self.a, self.slope, self.slope.size, len(b) - 1
        beta = b[top][:size]
        for r in reversed(range(top)):
            beta = b[r][:size] - a * times(beta, slope)
        # Row p−1 enters β₁ through p−2 products with −a g, which turn K⁽ᵖ⁾ into B_p.
        beta = beta + (-a) ** (top + 1) * (self.reduced[-1] @ v)
        w = self.times_hessian(jax.scipy.linalg.lu_solve(self.factors, beta))
        delta = [b[top] - a * times(self.levels[-1], v + w)]
        for r in reversed(range(top)):
            product = times(self.levels[r + 1], w) + times(delta[-1], slope)
            delta.append(b[r] - a * product)
        return tuple(reversed(delta))

    def times_hessian(self, vector: Float[Array, " slots"]) -> Float[Array, " slots"]:
        """H · v."""
        return times_blocks(vector[None], self.hessian.mT)[0]


def flatten(dynamics: DenseHierarchy, levels: Levels) -> Flat:
    """`levels` with one index for each slot."""
    size = dynamics.levels[0][: dynamics.problem.n_train].size
    return tuple(k.reshape(-1, *[size] * r) for r, k in enumerate(levels))


def slope_at(
    dynamics: DenseHierarchy, outputs: Float[Array, " all_slots"]
) -> Float[Array, " slots"]:
    """g for flattened outputs."""
    shaped = outputs.reshape(dynamics.levels[0].shape)
    return dynamics.output_gradient(shaped).reshape(-1)


def unflatten(like: Levels, levels: Flat) -> Any:
    """`levels` in the shapes of `like`."""
    return tuple(flat.reshape(k.shape) for k, flat in zip(like, levels, strict=True))


def times(kernel: Array, vector: Float[Array, " slots"]) -> Array:
    """K · v, the last slot of K summed against v."""
    # As a matrix: twice as fast on a CPU as a product with three or more axes.
    product = kernel.reshape(-1, vector.size) @ vector
    return product.reshape(kernel.shape[:-1])


def _reduced(
    kernel: Array, slope: Float[Array, " slots"]
) -> Float[Array, "slots slots"]:
    """`kernel` on the training points with `slope` in all slots but the last and one.

    Kernels are symmetric in their first two slots, and a sum over the first is a
    product with one matrix, where the second is not: 16 times faster on a CPU.
    """
    if kernel.ndim == 2:
        return kernel[: slope.size]
    kernel = jnp.tensordot(slope, kernel[: slope.size], axes=1)
    while kernel.ndim > 2:
        kernel = jnp.einsum("ab...,b->a...", kernel, slope)
    return kernel
