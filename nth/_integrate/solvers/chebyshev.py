"""A stabilized explicit Runge–Kutta method of order 4 for stiff training dynamics."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..._custom_types import Scalar, State
from .rock4_coefficients import rock4_coefficients
from .spectral_radius import SpectralState, first_estimate, refreshed

# The degree is chosen for this multiple of the estimated spectral radius: a power
# iteration approaches it from below.
_SAFETY = 1.1

# The error estimate is this multiple of h⁴ y⁗/24. At this size, a tolerance gives about
# the error that Tsit5 has at the same tolerance.
_ERROR_SCALE = 0.05

# For reverse mode the recurrence keeps its state at every sixteenth stage.
_CHUNK = 16


class Rock4State(eqx.Module):
    """The state of the solver between two steps."""

    rate: State
    """f at the start of the step, the last evaluation of the one before."""

    spectrum: SpectralState
    """The estimate of the spectral radius."""

    before: State
    """y at the start of the step before, for the error estimate."""

    step: Scalar
    """The size of the step before; 0 before the first."""

    accepted: Int[Array, ""]
    """Accepted steps so far."""

    evaluations: Int[Array, ""]
    """Evaluations of f so far, those of rejected steps left out."""


class ROCK4(diffrax.AbstractAdaptiveSolver):
    """ROCK4: an explicit method of order 4 whose steps are not limited by stability.

    For equations whose Jacobian has real eigenvalues λ ≤ 0, as gradient flow and the
    hierarchy have: those of −K⁽²⁾ ∂²L/∂f², and zeros. A step of size h takes s
    evaluations, with s the least degree for which h max|λ| ≤ 0.35 s². The number of
    evaluations up to time T grows as √T, where that of `diffrax.Tsit5()` grows as T.

    The spectral radius is estimated by power iteration on differences of f: about ten
    evaluations at the start and one every four steps. Dense output is by cubic Hermite
    interpolation. A step for which the largest degree, 200, does not suffice is
    rejected without evaluations.

    It has forward and reverse mode, the latter by recomputation: a step of degree s
    keeps O(√s) copies of the state. Derivatives do not go through the estimate of the
    spectral radius.

    Source: Abdulle 2002, *Fourth order Chebyshev methods with recurrence relation*,
    SIAM J. Sci. Comput. 23(6). Damping, last four stages and error estimate are those
    of this package: see `rock4_coefficients`.
    """

    refresh: int = eqx.field(static=True, default=4)
    """Accepted steps from one refresh of the spectral radius to the next."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[
        Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]
    ] = diffrax.ThirdOrderHermitePolynomialInterpolation

    def order(self, terms: Any) -> int:
        return 4

    def error_order(self, terms: Any) -> int:
        return 4

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> Rock4State:
        vf = _vector_field(terms, t0, y0, args)
        rate = vf(t0, y0, args)
        spectrum = first_estimate(vf, t0, y0, args, rate)
        none, zero = jnp.zeros_like(t0), jnp.zeros((), jnp.int32)
        return Rock4State(rate, spectrum, y0, none, zero, 1 + spectrum.evaluations)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: State,
        args: Any,
        solver_state: Rock4State,
        made_jump: Any,
    ) -> tuple[State, State, dict[str, State], Rock4State, diffrax.RESULTS]:
        del made_jump  # of a vector field with jumps; here it has none
        state, h = solver_state, t1 - t0
        vf = _vector_field(terms, t0, y0, args)
        due = (state.accepted % self.refresh == self.refresh - 1).astype(jnp.int32)
        spectrum = refreshed(vf, t0, y0, args, state.rate, state.spectrum, due)
        table = rock4_coefficients()
        needed = _SAFETY * spectrum.radius * jnp.abs(jax.lax.stop_gradient(h))
        index = jnp.searchsorted(jnp.asarray(table.intervals, needed.dtype), needed)
        fits = index < len(table.degrees)
        index = jnp.minimum(index, len(table.degrees) - 1)
        stages = jnp.where(fits, jnp.asarray(table.degrees, jnp.int32)[index] - 4, 0)
        start = _first_stages(vf, t0, h, y0, args, state.rate, index)
        change = _recurrence((vf, t0, h, y0, args, start), index, stages)
        y1 = jax.tree.map(jnp.add, y0, change)
        rate = vf(t1, y1, args)
        error = _error_estimate(h, y0, y1, rate, state)
        error = jax.tree.map(lambda e: jnp.where(fits, e, jnp.inf), error)
        evaluations = state.evaluations + due + jnp.where(fits, stages + 4, 1)
        new = Rock4State(rate, spectrum, y0, h, state.accepted + 1, evaluations)
        k0, k1 = (jax.tree.map(lambda k: h * k, k) for k in (state.rate, rate))
        dense = {"y0": y0, "y1": y1, "k0": k0, "k1": k1}
        return y1, error, dense, new, diffrax.RESULTS.successful


def _vector_field(terms: Any, t0: Any, y0: State, args: Any) -> Any:
    """f as a pytree: arrays that it closes over, traced ones too, become its leaves."""
    return eqx.filter_closure_convert(terms.vf, t0, y0, args)


def _row(values: np.ndarray, index: Array, dtype: Any) -> Array:
    return jnp.asarray(values, dtype)[index]


def _stage(inputs: Any, index: Array, j: Array, carry: tuple[State, State]) -> Any:
    """Stage j of the recurrence, for the change of y since the start of the step.

    The change, not y itself: rounding errors are then relative to it.
    """
    vf, t0, h, y0, args, _ = inputs
    table = rock4_coefficients()
    mu = _row(table.mu, index, h.dtype)[j] * h
    nu = _row(table.nu, index, h.dtype)[j]
    time = t0 + _row(table.times, index, h.dtype)[j] * h
    before, now = carry
    k = vf(time, jax.tree.map(jnp.add, y0, now), args)
    new = jax.tree.map(lambda k, a, b: mu * k + nu * a + (1 - nu) * b, k, now, before)
    return now, new


def _looped(inputs: Any, index: Array, stages: Array) -> State:
    """The change of y over the recurrence, of `stages` stages."""

    def stage(j: Array, carry: Any) -> Any:
        return _stage(inputs, index, j, carry)

    return jax.lax.fori_loop(0, stages, stage, (inputs[-1], inputs[-1]))[1]


@eqx.filter_custom_jvp
def _recurrence(inputs: Any, index: Array, stages: Array) -> State:
    return _looped(inputs, index, stages)


def _bounded(inputs: Any, index: Array, stages: Array) -> State:
    """The same by a loop of fixed length, which has reverse mode."""
    chunks = -(-rock4_coefficients().mu.shape[1] // _CHUNK)

    def stage(carry: Any, j: Array) -> tuple[Any, None]:
        new = jax.lax.cond(
            j < stages,
            lambda carry: _stage(inputs, index, j, carry),
            lambda carry: carry,
            carry,
        )
        return new, None

    @jax.checkpoint
    def chunk(carry: Any, js: Array) -> tuple[Any, None]:
        return jax.lax.scan(jax.checkpoint(stage), carry, js)

    js = jnp.arange(chunks * _CHUNK, dtype=jnp.int32).reshape(chunks, _CHUNK)
    return jax.lax.scan(chunk, (inputs[-1], inputs[-1]), js)[0][1]


@_recurrence.def_jvp
def _recurrence_jvp(primals: Any, tangents: Any) -> tuple[State, State]:
    """Forward mode through the loop; reverse mode as the transpose of a bounded one."""
    inputs, index, stages = primals
    moved = jax.tree.map(
        lambda tangent: tangent is not None, tangents[0], is_leaf=lambda t: t is None
    )
    varied, fixed = eqx.partition(inputs, moved)

    def function(
        loop: Any, fixed: Any, index: Any, stages: Any
    ) -> Callable[..., State]:
        return lambda varied: loop(eqx.combine(varied, fixed), index, stages)

    arrays, static = eqx.partition((varied, fixed, index, stages), eqx.is_array)

    def forward(arrays: Any, tangent: Any) -> State:
        varied, *rest = eqx.combine(arrays, static)
        return jax.jvp(function(_looped, *rest), (varied,), (tangent,))[1]

    def backward(arrays: Any, cotangent: State) -> Any:
        varied, *rest = eqx.combine(arrays, static)
        return jax.vjp(function(_bounded, *rest), varied)[1](cotangent)[0]

    change = _recurrence(inputs, index, stages)
    tangent = jax.custom_derivatives.linear_call(forward, backward, arrays, tangents[0])
    return change, tangent


def _first_stages(
    vf: Any,
    t0: Scalar,
    h: Scalar,
    y0: State,
    args: Any,
    rate: State,
    index: Array,
) -> State:
    """The change of y at the start of the recurrence.

    Four sums are accumulated: the changes of the arguments of k_2, k_3 and k_4, and
    that at the start of the recurrence.
    """
    table = rock4_coefficients()
    weights = _row(table.weights, index, h.dtype) * h
    nodes = _row(table.nodes, index, h.dtype)

    def stage(sums: State, i: Array) -> tuple[State, None]:
        y = jax.tree.map(lambda y, total: y + total[i - 1], y0, sums)
        k = vf(t0 + nodes[i] * h, y, args)
        return jax.tree.map(
            lambda total, k: total + jnp.tensordot(weights[:, i], k, axes=0), sums, k
        ), None

    first = jax.tree.map(lambda k: jnp.tensordot(weights[:, 0], k, axes=0), rate)
    sums, _ = jax.lax.scan(stage, first, jnp.arange(1, 4))
    return jax.tree.map(lambda total: total[3], sums)


def _error_estimate(
    h: Scalar, y0: State, y1: State, rate: State, state: Rock4State
) -> State:
    """A multiple of h⁴ y⁗, from y at three times and y' at the last two of them.

    With q = h₋₁/h, the cubic Hermite interpolant of the step, extended to t₀ − h₋₁,
    misses y₋₁ by q² (1 + q)² h⁴ y⁗/24. An embedded method of order 3 would have to use
    the first stages, whose weights no polynomial damps.

    In the first step there is no y₋₁: the estimate then takes y₀ − h y'₀ for it, and is
    too large, of order h².
    """
    first = state.step == 0
    q = jnp.where(first, 1, state.step / h)
    factor = _ERROR_SCALE / (q**2 * (1 + q) ** 2)

    def estimate(before: Array, y0: Array, y1: Array, k0: Array, k1: Array) -> Array:
        k0, k1 = h * k0, h * k1
        before = jnp.where(first, -k0, before - y0)
        change = y1 - y0
        # At s = −q: s k0 + s² (3 change − 2 k0 − k1) + s³ (k0 + k1 − 2 change).
        square = 3 * change - 2 * k0 - k1
        cube = k0 + k1 - 2 * change
        return factor * (before - (-q * k0 + q**2 * square - q**3 * cube))

    return jax.tree.map(estimate, state.before, y0, y1, state.rate, rate)
