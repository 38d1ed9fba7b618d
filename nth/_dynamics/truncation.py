"""Truncated dynamics that estimate their own error."""

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import State
from .base import AbstractDynamics

# Multiples of two measures of the error, calibrated on random problems by
# benchmarks/error_estimate.py: of |f(θ₀ + Σ u_k) − f̃|, which the matrix-free form and
# level 2 use, and of the last term of f̃, which the dense form uses above level 2.
_SERIES_FACTORS = {2: 2.0, 3: 1.3}
_RATIO_FACTOR = 1.5


def series_factor(order: int) -> float:
    """The factor of |f(θ₀ + Σ u_k) − f̃| at level `order`."""
    return _SERIES_FACTORS.get(order, 1.0)


def last_term_factors(
    order: int, first: Float[Array, " T"], second: Float[Array, " T"]
) -> Float[Array, " T"]:
    """The factor of the last term of f̃ at level `order` > 2, given the sizes of f_1 and
    f_2.

    At large width K⁽ʳ⁾ is of order width^(1 − r/2) for even r, and for odd r as small
    as K⁽ʳ⁺¹⁾. So the error of an odd level, f_p to leading order, is of the size of its
    last term f_{p−1}, and that of an even level is smaller, in the ratio that f_2 has
    to f_1.
    """
    if order % 2:
        return jnp.ones_like(first)
    safe = jnp.where(first > 0, first, 1)
    ratio = jnp.where(first > 0, second / safe, 1)
    return jnp.minimum(_RATIO_FACTOR * ratio, 1)


class AbstractTruncation(AbstractDynamics):
    """Dynamics of a truncated series, whose error can be estimated from a state.

    An optional part of the interface for [`nth.integrate`][]: for such dynamics
    `Solution.error_estimate` is known, and `output_errors` can be used in `save_fn`.
    """

    @abc.abstractmethod
    def output_errors(self, state: State) -> Float[Array, "m *out"]:
        """An estimate of the distance from the trained network's outputs.

        One number for each output on all m points, in the order of `outputs`. Only its
        size is meaningful, not its sign.
        """
