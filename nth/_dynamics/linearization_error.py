"""The error of level 2 in its dense form, from the network at the parameters reached.

At level 2 the parameters follow θ₀ + u_1 with u_1 = −M Jᵀ ∫g, and the outputs follow
the linearization of f there. So the network at θ₀ + u_1 shows what the linearization
lacks, for a backward and a forward pass at each time, with no kernel of higher order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._custom_types import Params
from .._internal.validation import is_traced
from .._network.base import TrainableNetwork
from .._network.learning_rates import by_rates
from .truncation import series_factor

# At how many times the network is evaluated, at most: a level-2 solve in its dense form
# costs no more than a few dozen passes.
_EVALUATIONS = 4


def linearization_errors(
    network: TrainableNetwork,
    ts: Float[Array, " T"],
    changes: Float[Array, "T m *out"],
    slopes: Float[Array, "T slots"],
) -> Float[Array, "T m *out"]:
    """f(θ₀ + u_1) − f̃ times a calibrated factor, for f̃ − f₀ and ∫g at each time.

    To leading order it is quadratic in u_1. So its ratio to the square of the change of
    f̃ varies slowly: it is computed at a few of the times, and in between interpolated
    linearly in ln t.
    """
    problem, params = network.problem, network.params

    def train(params: Params) -> Float[Array, "n *out"]:
        return network.apply.over(params, problem.x_train)

    f, pull = jax.vjp(train, params)
    start = network.apply.over(params, problem.x)
    squares = jnp.mean(changes**2, axis=range(1, changes.ndim))

    def ratio(i: Int[Array, ""]) -> Float[Array, "m *out"]:
        step = by_rates(network.rates, pull(slopes[i].reshape(f.shape))[0])
        moved = jax.tree.map(jnp.subtract, params, step)
        error = network.apply.over(moved, problem.x) - start - changes[i]
        return error / jnp.where(squares[i] > 0, squares[i], 1)

    count = min(len(ts), _EVALUATIONS)
    some = np.ceil(np.arange(1, count + 1) * (len(ts) - 1) / count).astype(int)
    ratios = jax.lax.map(ratio, jnp.asarray(some))
    logs = jnp.log(jnp.where(ts > 0, ts, 1))
    flat = jax.vmap(lambda values: jnp.interp(logs, logs[some], values), 1, 1)(
        ratios.reshape(count, -1)
    )
    scale = series_factor(2) * squares
    return scale.reshape(-1, *[1] * start.ndim) * flat.reshape(changes.shape)


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
