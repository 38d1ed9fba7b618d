"""The NTK along a solution: the whole kernel, or its leading eigenvectors."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from typing_extensions import Unpack

from .._custom_types import Scalar, State
from .._dynamics.base import AbstractDynamics, AbstractKernelDynamics
from .._dynamics.dense import DenseHierarchy
from .._internal.eigenvalues import leading_modes
from .._internal.precision import full_precision
from .._internal.validation import is_traced, require_instance, require_integer
from .._network.memory import require_memory
from .._solution.solution import Solution
from .integrate import IntegrateOptions, check_options, integrate

_EXAMPLE = "nth.MatrixFreeHierarchy(network, problem, order=3)"


class KernelPath(eqx.Module):
    """K̃⁽²⁾ over time: see [`nth.kernel_along`][]."""

    start: Float[Array, "m ..."]
    """The kernel at t = 0, of shape `(m, *out, n, *out)`."""

    ntk: Float[Array, "T m ..."]
    """The kernel at each of `solution.ts`, of shape `(T, m, *out, n, *out)`."""

    solution: Solution
    """The solution along which the kernel was evaluated."""

    @property
    def ts(self) -> Float[Array, " T"] | Int[Array, " T"]:
        """The requested times, or steps."""
        return self.solution.ts

    def on_train(self) -> tuple[Float[Array, "s s"], Float[Array, "T s s"]]:
        """`start` and `ntk` as square matrices of the s = n·C training slots."""
        n = self.solution.train.shape[1]
        slots = int(np.prod(self.solution.train.shape[1:]))
        start = self.start[:n].reshape(slots, slots)
        return start, self.ntk[:, :n].reshape(-1, slots, slots)


@full_precision
def kernel_along(
    dynamics: AbstractDynamics,
    ts: ArrayLike | Sequence[float],
    **options: Unpack[IntegrateOptions],
) -> KernelPath:
    """The kernel K̃⁽²⁾(t) of the outputs, df̃/dt = −K̃⁽²⁾ · g, along a solution.

    - For [`nth.DenseHierarchy`][] it is part of the state, and constant for p = 2.
    - For [`nth.MatrixFreeHierarchy`][] it is Σ_{k=0}^{p−2} [J(θ_ε) J(θ_ε)ᵀ]_k, the same
        kernel up to rounding error, at the cost of n·C products with vectors.
    - For [`nth.GradientFlow`][] it is the NTK at θ(t), which the others predict.

    **Arguments:**

    - `dynamics`: one of these, or another [`nth.AbstractKernelDynamics`][].
    - `ts`: times, shape `(T,)`, increasing and nonnegative.
    - `options`: those of [`nth.integrate`][], without `save_fn`.

    **Returns:** [`nth.KernelPath`][], with T·m·n·C² entries; NaN at times that the
    solve did not reach. Except for the dense hierarchy the state is also kept at each
    time. For many points see [`nth.spectrum_along`][].

    **Raises:** as [`nth.integrate`][]; `ValueError` for kernels that would not fit in
    memory.
    """
    dynamics = _with_kernel(dynamics, options)
    require_kernel_memory(
        "ts",
        dynamics,
        (np.size(ts) + 1, "times"),
        "Give fewer times, or use nth.spectrum_along, which forms no kernel.",
    )
    if isinstance(dynamics, DenseHierarchy):  # K̃⁽²⁾ is a small part of its state
        solution = integrate(dynamics, ts, **{**options, "save_fn": SaveNTK(dynamics)})
        ntk = solution.saved
    else:
        solution = integrate(dynamics, ts, **{**options, "save_fn": _save_state})
        ntk = _kernels_of(dynamics, solution.saved)
    start = jax.tree.map(lambda leaf: leaf[None], dynamics.initial_state())
    return KernelPath(_kernels_of(dynamics, start)[0], ntk, solution)


def require_kernel_memory(
    argument: str, dynamics: AbstractKernelDynamics, times: tuple[int, str], cure: str
) -> None:
    """Raise `ValueError` if the kernels at so many `times`, or steps, would not fit in
    memory."""
    outputs = eqx.filter_eval_shape(dynamics.outputs, dynamics.initial_state())
    slots = math.prod(outputs.shape) // len(outputs) * dynamics.problem.n_train
    kernel = math.prod(outputs.shape) * slots * outputs.dtype.itemsize
    count, unit = times
    size = f"{math.prod(outputs.shape)} x {slots} slots"
    purpose = f"the kernel at {count} {unit}, of {size}"
    require_memory(argument, purpose, count * kernel, cure)


@eqx.filter_jit
def _kernels_of(dynamics: AbstractKernelDynamics, states: State) -> Array:
    return jax.lax.map(dynamics.ntk, states)


class SpectrumPath(eqx.Module):
    """Leading eigenvectors of K̃⁽²⁾ over time: see [`nth.spectrum_along`][]."""

    eigenvalues: Float[Array, "T k"]
    """The k largest eigenvalues on the training points, in decreasing order."""

    modes: Float[Array, "T k n *out"]
    """Their normalized eigenvectors; the signs are arbitrary."""

    solution: Solution
    """The solution along which the kernel was evaluated."""

    @property
    def ts(self) -> Float[Array, " T"]:
        """The requested times."""
        return self.solution.ts


@full_precision
def spectrum_along(
    dynamics: AbstractDynamics,
    ts: ArrayLike | Sequence[float],
    count: int = 6,
    **options: Unpack[IntegrateOptions],
) -> SpectrumPath:
    """The largest eigenvalues of K̃⁽²⁾(t) on the training points, and eigenvectors:

        K̃⁽²⁾(t) e_i = λ_i e_i,        λ_1 ≥ λ_2 ≥ … ≥ λ_count.

    No kernel is formed: SciPy's `eigsh` (ARPACK) uses products with vectors, each at
    the cost of about two gradients. The state is kept at each time: p − 1 copies of
    the parameters for [`nth.MatrixFreeHierarchy`][].

    **Arguments:**

    - `dynamics`, `ts`, `options`: as for [`nth.kernel_along`][].
    - `count`: the number of eigenvalues, below the number n·C of training slots.

    **Returns:** [`nth.SpectrumPath`][]; NaN at times that the solve did not reach.

    **Raises:** `ValueError` for an invalid count, or under `jax.jit`, which SciPy does
    not support; otherwise as [`nth.integrate`][].
    """
    dynamics = _with_kernel(dynamics, options)
    count = require_integer("count", count, 1)
    start = dynamics.initial_state()
    shape = jax.eval_shape(dynamics.outputs, start).shape[1:]
    shape = (dynamics.problem.n_train, *shape)
    if count >= np.prod(shape):
        raise ValueError(
            f"count must be below {np.prod(shape)}, the number of training slots; got "
            f"{count}. For all of them use jnp.linalg.eigh of nth.kernel_along(...)."
        )
    if is_traced(dynamics, start, jnp.zeros(())):
        raise ValueError("spectrum_along cannot be used under jax.jit: it uses SciPy.")
    solution = integrate(dynamics, ts, **{**options, "save_fn": _save_state})
    states = [
        jax.tree.map(lambda leaf, i=i: leaf[i], solution.saved)
        for i in range(len(solution.ts))
    ]
    pairs = [_leading(dynamics, state, count, shape) for state in states]
    eigenvalues, modes = (
        jnp.asarray(np.stack(part)) for part in zip(*pairs, strict=True)
    )
    return SpectrumPath(eigenvalues, modes, solution)


def _save_state(t: Scalar, state: State, args: Any) -> State:
    return state


class SaveNTK(eqx.Module):
    """K̃⁽²⁾ as a `save_fn`; a module, so that its arrays are arguments of the solve."""

    dynamics: AbstractKernelDynamics

    def __call__(self, t: Any, state: State, args: Any) -> Float[Array, "m ..."]:
        return self.dynamics.ntk(state)


def _with_kernel(
    dynamics: AbstractDynamics, options: IntegrateOptions
) -> AbstractKernelDynamics:
    """`dynamics`, if it has a kernel and `save_fn` is not given."""
    check_options(options)
    if options.get("save_fn") is not None:
        raise ValueError("save_fn: the kernel is saved here. Leave out save_fn.")
    require_instance("dynamics", dynamics, AbstractKernelDynamics, _EXAMPLE)
    assert isinstance(dynamics, AbstractKernelDynamics)  # for the type checker
    return dynamics


@eqx.filter_jit
def _product(
    dynamics: AbstractKernelDynamics, state: State, vector: Float[Array, "n *out"]
) -> Float[Array, "n *out"]:
    return dynamics.ntk_product(state, vector)[: dynamics.problem.n_train]


def _leading(
    dynamics: AbstractKernelDynamics, state: State, count: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in decreasing order, and the eigenvectors as rows."""
    leaves = jax.tree.leaves(state)
    dtype = leaves[0].dtype
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves):
        missing = np.full((count, *shape), np.nan, dtype)
        return missing.reshape(count, -1)[:, 0], missing

    return leading_modes(partial(_product, dynamics, state), shape, dtype, count)
