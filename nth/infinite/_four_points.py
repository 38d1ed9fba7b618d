"""Tensors over four points: their slots, and how moments of neurons vary with them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Tensor = Float[Array, "n n n n"]
Matrix = Float[Array, "n n"]
# A function g of the outputs of one neuron at two points: entry [i, j, a, b] is
# E ∂₁ⁱ∂₂ʲ g(z_a, z_b).
Pair = Float[Array, "k l n n"]


def vary_matrix(g: Pair, change: Matrix) -> Matrix:
    """½ Σ change[p, q] E ∂_p ∂_q g over p, q ∈ {a, b}."""
    diagonal = jnp.diagonal(change)
    by_variance = diagonal[:, None] * g[2, 0] + diagonal[None, :] * g[0, 2]
    return by_variance / 2 + change * g[1, 1]


def vary(g: Pair, change: Tensor) -> Tensor:
    """½ Σ change[p, q, …] E ∂_p ∂_q g over p, q ∈ {a, b}, in the first two slots."""
    diagonal = jnp.einsum("aacd->acd", change)
    by_variance = diagonal[:, None] * first_pair(g[2, 0])
    by_variance = by_variance + diagonal[None, :] * first_pair(g[0, 2])
    return by_variance / 2 + change * first_pair(g[1, 1])


def vary_second(g: Pair, change: Tensor) -> Tensor:
    return swapped(vary(g, swapped(change)))


def move(g: Pair, change: Tensor) -> Tensor:
    """Σ change[a, p, …] E ∂_p g over p ∈ {a, b}, in the first two slots."""
    diagonal = jnp.einsum("aacd->acd", change)[:, None]
    return diagonal * first_pair(g[1, 0]) + change * first_pair(g[0, 1])


def move_second(g: Pair, change: Tensor) -> Tensor:
    return swapped(move(g, swapped(change)))


def repeated(change: Tensor) -> Tensor:
    """change[a, a, c, d] as a tensor over (a, b, c, d)."""
    diagonal = jnp.einsum("aacd->acd", change)[:, None]
    return jnp.broadcast_to(diagonal, change.shape)


def swapped(tensor: Tensor) -> Tensor:
    """The first two slots exchanged with the last two."""
    return jnp.transpose(tensor, (2, 3, 0, 1))


def slots(matrix: Matrix, first: int, second: int) -> Float[Array, "..."]:
    """`matrix` over two of four slots."""
    if first > second:
        matrix, first, second = matrix.T, second, first
    others = [slot for slot in range(4) if slot not in (first, second)]
    return jnp.expand_dims(matrix, others)


def first_pair(matrix: Matrix) -> Float[Array, "n n 1 1"]:
    return slots(matrix, 0, 1)


def second_pair(matrix: Matrix) -> Float[Array, "1 1 n n"]:
    return slots(matrix, 2, 3)


def outer(first: Matrix, second: Matrix) -> Tensor:
    return first_pair(first) * second_pair(second)
