"""The cause of a failure at t = 0: which values are not finite, and at which points."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import State
from .._dynamics.base import AbstractDynamics
from .._dynamics.parameter_dynamics import AbstractDescent
from .._internal.validation import all_finite
from .._network.finiteness import cause_of_non_finite, name_points, rows_not_finite
from .._network.learning_rates import overflow_by_rates


def cause_at_start(dynamics: AbstractDynamics) -> str | None:
    """A description of what is NaN or infinite at t = 0; `None` if nothing is."""
    n_train, state = dynamics.problem.n_train, dynamics.initial_state()
    outputs, g, rate = _evaluated(dynamics, state)
    if isinstance(dynamics, AbstractDescent):
        points = (dynamics.apply, dynamics.params, dynamics.problem.x)
        if cause := cause_of_non_finite(*points, n_train):
            return cause
    if (bad := rows_not_finite(outputs)).size:
        return f"the output at t = 0 is NaN or infinite at {name_points(bad, n_train)}."
    if (bad := rows_not_finite(g)).size:
        return (
            "the derivative of the loss with respect to the output is NaN or infinite "
            f"at {name_points(bad, n_train)}, at t = 0. Check the loss and y_train."
        )
    power = getattr(dynamics, "order", 2) - 1
    overflow = overflow_by_rates(getattr(dynamics, "rates", None), power)
    if bool(all_finite(*jax.tree.leaves(rate))):
        return overflow
    return overflow or (
        "the outputs are finite at t = 0, but their rate of change is not: a higher or "
        "forward-mode derivative of the network is NaN or infinite at some point, such "
        "as that of a norm or a square root at 0. Remove such points, or make the "
        "network smooth there, for instance by jnp.sqrt(s + 1e-12) in place of "
        'jnp.sqrt(s); order 2 with method="dense" needs reverse mode only.'
    )


@eqx.filter_jit
def _evaluated(
    dynamics: AbstractDynamics, state: State
) -> tuple[Array, Array, dict[str, Any]]:
    outputs = dynamics.outputs(state)
    rate = dynamics.vector_field(jnp.zeros((), outputs.dtype), state, None)
    return outputs, dynamics.output_gradient(outputs), {"rate": rate}
