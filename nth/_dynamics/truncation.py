"""Truncated dynamics that estimate their own error."""

import abc

from jaxtyping import Array, Float

from .._custom_types import State
from .base import AbstractDynamics


# Multiples of two measures of the error, calibrated on random problems by
# benchmarks/error_estimate.py: |f(θ₀ + Σ u_k) − f̃| of the matrix-free form, and the
# size of the last term of f̃ in the dense form. Odd-order kernels are smaller than even
# ones at large width, so the last term of an even level, whose successor is of odd
# order, exceeds the error by more.
_SERIES_FACTORS = {2: 2.0, 3: 1.3}
_LAST_TERM_FACTORS = (0.6, 1.0)


def series_factor(order: int) -> float:
    """The factor of |f(θ₀ + Σ u_k) − f̃| at level `order`."""
    return _SERIES_FACTORS.get(order, 1.0)


def last_term_factor(order: int) -> float:
    """The factor of the last term of f̃ at level `order` > 2."""
    return _LAST_TERM_FACTORS[order % 2]


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
