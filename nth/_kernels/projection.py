"""Kernels projected on a few modes, such as the leading eigenvectors of the NTK.

The kernels of q modes e_i are those of the q functions F_i = Σ_β e_i[β] f_β, which have
only q gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._internal.eigenvalues import leading_modes
from .._internal.precision import full_precision
from .._internal.validation import as_array, is_traced, require_integer, require_order
from .._network.base import trainable
from .._network.finiteness import require_finite_result
from .._network.learning_rates import with_unit_rates
from .._network.memory import require_memory, tree_bytes
from .._problem.problem import Problem
from .assembly import form
from .contraction import checked_slots
from .evaluation import Points, points_of
from .hierarchy_operator import along_jacobian, lift, require_forward_mode
from .mode_functions import ModeFunctions, blocks_of

# Maximum training slots for which eigenvectors are computed from the full matrix.
_DENSE = 4096


class Projection(eqx.Module):
    """K⁽¹⁾ … K⁽ᵖ⁾ projected on q modes: see [`nth.project`][].

    `projection[r]` is Σ e_i[a] e_j[b] … K⁽ʳ⁾[a, b, …], of shape `(q,) * r`.
    """

    modes: Float[Array, "q n *out"]
    """The modes e_i."""

    tensors: tuple[Float[Array, "..."], ...]

    @property
    def order(self) -> int:
        """The highest r available."""
        return len(self.tensors)

    @property
    def eigenvalues(self) -> Float[Array, " q"]:
        """⟨e_i, K⁽²⁾ e_i⟩, the NTK's eigenvalues if the modes are its eigenvectors."""
        return jnp.diagonal(self[2])

    def __getitem__(self, r: int) -> Float[Array, "..."]:
        """K⁽ʳ⁾ along the modes, r = 1 … order."""
        r = require_integer("r", r, 1)
        if r > self.order:
            raise IndexError(f"this projection goes up to r = {self.order}; got {r}.")
        return self.tensors[r - 1]


@full_precision
def project(
    network: Callable[..., Any],
    problem: Problem,
    modes: int | ArrayLike,
    *,
    order: int,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Projection:
    """K⁽¹⁾ … K⁽ᵖ⁾ projected on modes in every slot: q^r numbers each, with no
    intermediate tensor larger than n².

    They are the kernels of the q functions F_i = Σ_β e_i[β] f_β. With u_i = ∇F_i,
    v_ik the derivative of u_i along u_k, and T_i the third derivative of F_i,

        K⁽³⁾[i, j, k]    = v_ik·u_j + u_i·v_jk,
        K⁽⁴⁾[i, j, k, l] = v_ik·v_jl + v_il·v_jk + (v_ij + v_ji)·v_kl
                           + T_i[j, k, l] + T_j[i, k, l].

    Time is linear in n: q gradients for K⁽²⁾, q² for K⁽³⁾ and q³/6 third derivatives
    for K⁽⁴⁾. From K⁽³⁾ on memory is about 2q² to 3q² copies of the parameters.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
        Only the training points are used.
    - `modes`: q, for the q leading eigenvectors of the NTK on the training points, or
        an array of vectors, shape `(q, n, *out)`. The eigenvectors are computed from
        the full matrix up to n·C = 4,096, beyond by Lanczos' method (SciPy's `eigsh`).
    - `order`: the highest r, from 2 to 12.

    **Returns:** [`nth.Projection`][].

    **Raises:** `ValueError` for a bad order, more modes than slots, modes that do not
    fit, or derivatives that would not fit in memory.
    """
    order = require_order("order", order)
    own = trainable(network, problem, filter_spec, learning_rates)
    points = points_of(own).on_train
    if order > 2:
        purpose = f"projection at order {order}"
        require_forward_mode(points.apply, points.params, points.x_train, purpose)
    if isinstance(modes, int | np.integer):
        vectors = _leading_modes(points, require_integer("modes", modes, 1))
    else:
        modes = as_array("modes", modes)
        if modes.ndim == 0:
            raise ValueError(
                "modes must be an integer of at least 1, or an array of vectors of "
                f"shape (q, n, *out); got {modes}."
            )
        vectors = checked_slots("modes", modes, points, modes.shape[:1])
        if len(vectors) == 0:
            raise ValueError("modes has no vector: give at least one.")
    _require_memory(points, vectors, order)
    tensors = _projected(points, vectors, order)
    at = (points.apply, points.params, points.x_train, points.n_train)
    require_finite_result("the projection", (vectors, *tensors), *at)
    return Projection(vectors, tensors)


def _require_memory(points: Points, modes: Array, order: int) -> None:
    """Raise `ValueError` if derivatives along the modes would not fit in memory."""
    q, itemsize = len(modes), points.output.dtype.itemsize
    # Copies of q² derivatives: the sum over blocks of points, one block, and for K⁽⁴⁾
    # the copy made by a product of matrices. Each further order doubles them.
    copies = q if order == 2 else 2 * q**2 if order == 3 else 3 * q**2 << (order - 4)
    require_memory(
        "modes",
        f"a projection on {q} modes at order {order}",
        (copies + 1) * tree_bytes(points.params) + q**order * itemsize,
        "Give fewer modes, or a lower order.",
    )


def _leading_modes(points: Points, q: int) -> Float[Array, "q n *out"]:
    """The q leading eigenvectors of K⁽²⁾, each with its largest entry positive."""
    n_slots, output = points.n_slots, points.output
    if q > n_slots:
        raise ValueError(
            f"modes must be at most {n_slots}, the number of training slots; got {q}."
        )
    if n_slots <= max(_DENSE, 2 * q) or is_traced(points):
        require_memory(
            "modes",
            f"all eigenvectors of {n_slots} training slots",
            4 * n_slots**2 * output.dtype.itemsize,
            "Give fewer modes, or use fewer training points or float32.",
        )
        ntk = form(points, 2, None, progress=False)[1].reshape(n_slots, n_slots)
        vectors = jnp.linalg.eigh(ntk)[1][:, ::-1][:, :q].T
    else:
        shape = (points.n_train, *output.shape)
        times = partial(_ntk_times, points)
        vectors = jnp.asarray(leading_modes(times, shape, output.dtype, q)[1])
        vectors = vectors.reshape(q, n_slots)
    largest = jnp.argmax(jnp.abs(vectors), axis=1)[:, None]
    signs = jnp.sign(jnp.take_along_axis(vectors, largest, axis=1))
    return (vectors * signs).reshape(q, -1, *output.shape)


@eqx.filter_jit
def _ntk_times(points: Points, v: Float[Array, "n *out"]) -> Float[Array, "n *out"]:
    x = points.x_train
    outputs = partial(points.apply.over, xs=x)
    return along_jacobian(outputs, points.apply, x, v, points.rates)(points.params)


@eqx.filter_jit
def _projected(
    points: Points, modes: Float[Array, "q n *out"], order: int
) -> tuple[Float[Array, "..."], ...]:
    params, parameters = with_unit_rates(points.params, points.rates)
    parts = ModeFunctions(points.apply, parameters, *blocks_of(points, modes))
    tensors = parts.kernels(params, min(order, 4))
    lifted = parts.fourth
    for _ in range(4, order):
        lifted = lift(lifted, parts.gradient, len(modes), 1)
        tensors.append(lifted(params))
    return tuple(tensors)
