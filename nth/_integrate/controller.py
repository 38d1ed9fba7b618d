"""The default step size controller."""

import math

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics
from .choice import Choice
from .kinks import KinkController
from .solvers.abstract_rosenbrock import AbstractRosenbrock
from .solvers.chebyshev import ROCK4

# rtol, atol and the rtol up to which kinks relax it. A loss with kinks is averaged over
# outputs ± 5e-4, which leaves errors of this size at any tolerance.
_SINGLE, _DOUBLE, _AVERAGED = (1e-5, 1e-6, 2e-4), (1e-7, 1e-9, 2e-4), (1e-5, 1e-6, 1e-4)

# Proportional and integral gain of the controller.
_INTEGRAL, _PROPORTIONAL = (0.0, 1.0), (0.3, 0.4)


def default_controller(
    choice: Choice, ts: Float[Array, " T"]
) -> diffrax.PIDController | KinkController:
    """Tolerances for the dtype of `ts`, relaxed at kinks where the solver allows it."""
    eps = float(jnp.finfo(ts.dtype).eps)
    rtol, atol, loosest = _DOUBLE if eps < 1e-10 else _SINGLE
    if choice.averaged:
        rtol, atol, loosest = _AVERAGED
    # Above some step size the error of ROCK4 rises as its eighth power: a controller of
    # the last error alone would reject every second step.
    gains = _PROPORTIONAL if isinstance(choice.solver, ROCK4) else _INTEGRAL
    controller = diffrax.PIDController(
        rtol=rtol,
        atol=atol,
        pcoeff=gains[0],
        icoeff=gains[1],
        # Ends a solution that diverges in finite time, in ever smaller steps.
        dtmin=eps * jnp.minimum(ts[-1], _time_scale(choice.rate)),
        force_dtmin=False,
        norm=eqx.Partial(_checked_norm, choice.dynamics),
    )
    # A kink is detected by the order of the error estimate, which for multistep methods
    # is lower in the first steps.
    one_step = diffrax.AbstractRungeKutta | AbstractRosenbrock | ROCK4
    if isinstance(choice.solver, one_step):
        return KinkController(controller, loosest)
    return controller


def _checked_norm(dynamics: AbstractDynamics, scaled: State) -> Scalar:
    """The error norm of `dynamics`: checked while it is traced."""
    norm = dynamics.error_norm(scaled)
    shape, dtype = getattr(norm, "shape", None), getattr(norm, "dtype", None)
    if shape != () or not jnp.issubdtype(dtype or bool, jnp.floating):
        raise ValueError(
            "dynamics: error_norm(scaled) must be a floating scalar, such as the root "
            f"mean square of all entries; got {norm!r}."
        )
    return norm


def _time_scale(rate: float | None) -> float:
    """1/ρ to a power of two: what identifies a checkpoint must not vary by rounding."""
    if rate is None or not 0 < rate < math.inf:
        return 1.0
    return 2.0 ** -round(math.log2(rate))
