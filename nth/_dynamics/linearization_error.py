"""The error of level 2 in its dense form, from the network at the parameters reached.

At level 2 the parameters follow θ₀ + u_1 with u_1 = −M Jᵀ ∫g, and the outputs follow
the linearization of f there. So the network at θ₀ + u_1 shows what the linearization
lacks, for a backward and a forward pass at each time, with no kernel of higher order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Params
from .._internal.validation import is_traced
from .._network.base import TrainableNetwork
from .._network.learning_rates import by_rates
from .truncation import series_factor


def linearization_errors(
    network: TrainableNetwork,
    outputs: Float[Array, "T m *out"],
    slopes: Float[Array, "T slots"],
) -> Float[Array, "T m *out"]:
    """f(θ₀ + u_1) − f̃ times a calibrated factor, for f̃ and ∫g at each time."""
    problem, params = network.problem, network.params

    def train(params: Params) -> Float[Array, "n *out"]:
        return network.apply.over(params, problem.x_train)

    f, pull = jax.vjp(train, params)

    def at(slope: Float[Array, " slots"]) -> Float[Array, "m *out"]:
        step = by_rates(network.rates, pull(slope.reshape(f.shape))[0])
        moved = jax.tree.map(jnp.subtract, params, step)
        return network.apply.over(moved, problem.x)

    return series_factor(2) * (jax.lax.map(at, slopes) - outputs)


def require_same_network(
    network: TrainableNetwork, outputs: Float[Array, "m *out"]
) -> None:
    """Raise `ValueError` unless `network` has those outputs at θ₀."""
    there = network.apply.over(network.params, network.problem.x)
    same = there.shape == outputs.shape
    if same and not is_traced(there, outputs):
        same = bool(jnp.allclose(there, outputs, rtol=1e-3, atol=1e-3))
    if not same:
        raise ValueError(
            "network is not the one that kernels were formed with: its outputs differ "
            "from K(1). Give the same network, filter_spec and learning_rates."
        )
