"""A step size controller for vector fields with kinks: ReLU networks, hinge losses."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._custom_types import Scalar, State

# A step that is rejected twice in a row is at a kink if the error decreased with a
# smaller power of the step size than this. For a smooth f that power is about the order
# of the error estimate, 4 or 5; at a jump of f' or f it is 2 or 1.
_KINK_POWER = 2.5

# Each kink multiplies the tolerance by the first factor, each step that is accepted at
# the first attempt by the second.
_RELAX, _RECOVER = 10.0, 0.98


class KinkState(eqx.Module):
    """The state of the inner controller, and the last step for comparison."""

    inner: Any
    relaxation: Scalar
    rejected: Bool[Array, ""]
    step: Scalar
    error: Scalar
    started: Bool[Array, ""]


class KinkController(diffrax.AbstractAdaptiveStepSizeController[KinkState, Any]):
    """Relaxes the tolerances of another controller where the vector field has kinks.

    At a kink an error estimate of order q falls only as h or h², and an adaptive
    controller reduces h until the kink contributes less than the tolerance: with many
    kinks, most of the steps are spent on this. Here two rejections in a row whose
    errors do not fall as fast as for a smooth vector field count as a kink, after the
    first step, in which the estimate of some methods is of lower order. The tolerances
    are then multiplied by 10, up to `loosest` in relative tolerance, and return slowly.

    While no kink is detected, the steps are those of the inner controller.

    **Arguments:**

    - `controller`: a `diffrax.PIDController`.
    - `loosest`: the largest relative tolerance.
    """

    controller: diffrax.PIDController
    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Any]
    loosest: float

    def __init__(self, controller: diffrax.PIDController, loosest: float = 2e-4):
        self.controller = controller
        self.rtol, self.atol = controller.rtol, controller.atol
        self.norm = controller.norm
        self.loosest = loosest

    def wrap(self, direction: Any) -> "KinkController":
        return KinkController(self.controller.wrap(direction), self.loosest)

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: State,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, KinkState]:
        t1, inner = self.controller.init(
            terms, t0, t1, y0, dt0, args, func, error_order
        )
        ones = jnp.ones_like(t1)
        no = jnp.asarray(False)
        return t1, KinkState(inner, ones, no, t1 - t0, ones, no)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: State,
        y1_candidate: State,
        args: Any,
        y_error: State | None,
        error_order: Any,
        controller_state: KinkState,
    ) -> tuple[Any, Any, Any, Any, KinkState, diffrax.RESULTS]:
        state, h = controller_state, t1 - t0
        error = jnp.asarray(self.norm(self._scaled(y0, y1_candidate, y_error)))
        power = jnp.log(error / state.error) / jnp.log(h / state.step)
        repeated = state.rejected & state.started
        kink = repeated & (error > state.relaxation) & (power < _KINK_POWER)
        largest = jnp.maximum(self.loosest / self.controller.rtol, 1)
        relaxation = jnp.where(kink, state.relaxation * _RELAX, state.relaxation)
        relaxation = jnp.minimum(relaxation, largest).astype(state.relaxation.dtype)
        relaxed = jax.tree.map(lambda e: e / relaxation, y_error)
        keep, next_t0, next_t1, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, relaxed, error_order, state.inner
        )
        keep = jnp.asarray(keep)
        smooth = keep & ~state.rejected
        later = jnp.where(smooth, jnp.maximum(relaxation * _RECOVER, 1), relaxation)
        new = KinkState(inner, later, ~keep, h, error, state.started | keep)
        return keep, next_t0, next_t1, jump, new, result

    def _scaled(self, y0: State, y1: State, error: State | None) -> State:
        pid = self.controller

        def scaled(a: Array, b: Array, e: Array) -> Array:
            return e / (pid.atol + pid.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))

        return jax.tree.map(scaled, y0, y1, error)
