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
from .rock4_coefficients import ERROR_SCALE, rock4_coefficients
from .spectral_radius import SpectralState, first_estimate, refreshed

# The degree is chosen for this multiple of the estimated spectral radius: a power
# iteration approaches it from below.
_SAFETY = 1.1

# Accepted steps between two refreshes of the spectral radius.
_REFRESH = 4

# For reverse mode the recurrence keeps its state at every sixteenth stage.
_CHUNK = 16


class Rock4State(eqx.Module):
    """What a step hands on to the next."""

    rate: State
    """f at the start of the step, the last evaluation of the one before."""

    spectrum: SpectralState
    """The estimate of the spectral radius."""

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
        zero = jnp.zeros((), int)
        return Rock4State(rate, spectrum, zero, 1 + spectrum.evaluations)

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
        due = (state.accepted % _REFRESH == _REFRESH - 1).astype(int)
        spectrum = refreshed(vf, t0, y0, args, state.rate, state.spectrum, due)
        table = rock4_coefficients()
        needed = _SAFETY * spectrum.radius * jnp.abs(jax.lax.stop_gradient(h))
        index = jnp.searchsorted(jnp.asarray(table.intervals, needed.dtype), needed)
        fits = index < len(table.degrees)
        index = jnp.minimum(index, len(table.degrees) - 1)
        stages = jnp.where(fits, jnp.asarray(table.degrees)[index] - 4, 0)
        change = _recurrence((vf, t0, h, y0, args, state.rate), index, stages)
        y1, rate, error = _last_stages(vf, t0, h, y0, args, change, index, fits)
        error = jax.tree.map(lambda e: jnp.where(fits, e, jnp.inf), error)
        evaluations = state.evaluations + due + stages + 4
        new = Rock4State(rate, spectrum, state.accepted + 1, evaluations)
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


def _first_stage(inputs: Any, index: Array) -> tuple[State, State]:
    _, _, h, y0, _, rate = inputs
    mu = _row(rock4_coefficients().mu, index, h.dtype)[0] * h
    return jax.tree.map(jnp.zeros_like, y0), jax.tree.map(lambda k: mu * k, rate)


def _looped(inputs: Any, index: Array, stages: Array) -> State:
    """The change of y over the recurrence, of `stages` stages."""

    def stage(j: Array, carry: Any) -> Any:
        return _stage(inputs, index, j, carry)

    return jax.lax.fori_loop(1, stages, stage, _first_stage(inputs, index))[1]


@eqx.filter_custom_jvp
def _recurrence(inputs: Any, index: Array, stages: Array) -> State:
    return _looped(inputs, index, stages)


def _bounded(inputs: Any, index: Array, stages: Array) -> State:
    """The same by a loop of fixed length, which has reverse mode."""
    chunks = -(-rock4_coefficients().mu.shape[1] // _CHUNK)

    def stage(carry: Any, j: Array) -> tuple[Any, None]:
        new = jax.lax.cond(
            (j > 0) & (j < stages),
            lambda carry: _stage(inputs, index, j, carry),
            lambda carry: carry,
            carry,
        )
        return new, None

    @jax.checkpoint
    def chunk(carry: Any, js: Array) -> tuple[Any, None]:
        return jax.lax.scan(jax.checkpoint(stage), carry, js)

    js = jnp.arange(chunks * _CHUNK).reshape(chunks, _CHUNK)
    return jax.lax.scan(chunk, _first_stage(inputs, index), js)[0][1]


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


def _last_stages(
    vf: Any,
    t0: Scalar,
    h: Scalar,
    y0: State,
    args: Any,
    change: State,
    index: Array,
    fits: Array,
) -> tuple[State, State, State]:
    """y₁, f(y₁) and the error estimate.

    Five sums are accumulated: the changes of the arguments of the stages after the
    first, that of y₁ the fourth of them, and the error estimate.
    """
    table = rock4_coefficients()
    weights = _row(table.weights, index, h.dtype)
    nodes = _row(table.nodes, index, h.dtype)
    bases = jax.tree.map(lambda d: jnp.stack([d, d, d, d, ERROR_SCALE * d]), change)

    def stage(carry: Any, i: Array) -> tuple[Any, None]:
        sums, argument, _ = carry
        y = jax.tree.map(jnp.add, y0, argument)
        k = vf(t0 + nodes[i] * h, y, args)
        column = weights[:, i] * h
        sums = jax.tree.map(
            lambda total, k: total + jnp.tensordot(column, k, axes=0), sums, k
        )
        following = jax.tree.map(lambda total: total[jnp.minimum(i, 3)], sums)
        return (sums, following, k), None

    (sums, end, rate), _ = jax.lax.scan(stage, (bases, change, change), jnp.arange(5))
    y1 = jax.tree.map(jnp.add, y0, end)
    return y1, rate, jax.tree.map(lambda total: total[4], sums)
