"""Products with H = ∂g/∂f, the second derivative of the loss in output space.

Slots are flattened: a slot is one index over training points and output components.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._dynamics.base import AbstractDynamics


def output_hessian(
    dynamics: AbstractDynamics, outputs: Float[Array, "m *out"]
) -> Float[Array, "n C C"]:
    """H = ∂g/∂f on the training points: one block for each point, since L is a mean."""
    problem = dynamics.problem
    train = outputs[: problem.n_train]

    def gradient(output: Array, target: Array) -> Array:
        return jax.grad(problem.loss.pointwise)(output, target)

    blocks = jax.vmap(jax.jacfwd(gradient))(train, problem.y_train)
    n, components = problem.n_train, train[0].size
    return blocks.reshape(n, components, components) / n


def times_blocks(rows: Float[Array, "a slots"], blocks: Float[Array, "n C C"]) -> Array:
    """`rows` times the block-diagonal matrix of `blocks`."""
    if blocks.shape[1] == 1:
        return rows * blocks.reshape(1, -1)
    split = rows.reshape(len(rows), *blocks.shape[:2])
    return jnp.einsum("ajc,jcd->ajd", split, blocks).reshape(rows.shape)
