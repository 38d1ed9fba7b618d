"""Kernels projected on a few modes, such as the leading eigenvectors of the NTK.

The kernels of q modes e_i are those of the q functions F_i = Σ_β e_i[β] f_β, which have
only q gradients. Each is a sum over points.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement, permutations
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from .._custom_types import Params
from .._internal.eigenvalues import leading_modes
from .._internal.precision import full_precision
from .._internal.validation import as_array, is_traced, require_integer, require_order
from .._network.base import OutputFunction, trainable
from .._network.finiteness import require_finite_result
from .._network.learning_rates import with_unit_rates
from .._network.memory import activation_bytes, require_memory, tree_bytes
from .._problem.inputs import take
from .._problem.problem import Problem
from .assembly import form
from .contraction import checked_slots
from .evaluation import Points, points_of
from .hierarchy_operator import along_jacobian, lift, require_forward_mode
from .mlp_kernels import fourth_of, third_of

# Training slots up to which eigenvectors are computed from the full matrix.
_DENSE = 4096
# Bytes that one block of points may take.
_BLOCK_BYTES = 2**28

Tree = TypeVar("Tree")


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
    for K⁽⁴⁾. Memory is that of some q² copies of the parameters from K⁽³⁾ on.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
        Only the training points count.
    - `modes`: q, for the q leading eigenvectors of the NTK on the training points, or
        an array of vectors, shape `(q, n, *out)`. The eigenvectors are computed from
        the full matrix up to n·C = 4,096, beyond by Lanczos' method (SciPy's `eigsh`).
    - `order`: the highest r, from 2 to 12.

    **Returns:** [`nth.Projection`][].

    **Raises:** `ValueError` for a bad order, more modes than slots, modes that do not
    fit, or what would not fit in memory.
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
    # Of q² derivatives: the sum over blocks of points and one block, and for K⁽⁴⁾ the
    # copy that a product of matrices makes. Each order beyond doubles them.
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
    parts = _Modes(points.apply, parameters, *_blocks(points, modes))
    tensors = parts.kernels(params, min(order, 4))
    lifted = parts.fourth
    for _ in range(4, order):
        lifted = lift(lifted, parts.gradient, len(modes), 1)
        tensors.append(lifted(params))
    return tuple(tensors)


def _blocks(
    points: Points, modes: Float[Array, "q n *out"]
) -> tuple[PyTree[Shaped[Array, "k b ..."]], Float[Array, "k q b *out"]]:
    """Points and modes in blocks; padding of the last block has weight zero."""
    n, q = points.n_train, len(modes)
    one = activation_bytes(points.apply, points.params, take(points.x_train, 0))
    size = min(n, max(1, _BLOCK_BYTES // (8 * q * one)))
    count = -(-n // size)
    size = -(-n // count)
    spare = count * size - n

    def filled(array: Array, axis: int, mode: str) -> Array:
        widths = [(0, spare if k == axis else 0) for k in range(array.ndim)]
        array = jnp.pad(array, widths, mode)
        shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(array.reshape(shape), axis, 0)

    x = jax.tree.map(lambda leaf: filled(leaf, 0, "edge"), points.x_train)
    return x, filled(modes, 1, "constant")


class _Modes(eqx.Module):
    """F_i = Σ_β e_i[β] f_β in blocks of points, and their kernels as functions of θ."""

    apply: OutputFunction
    parameters: Callable[[Params], Params]
    """From parameters whose learning rates are 1 to those of the network."""

    x: PyTree[Shaped[Array, "k b ..."]]
    modes: Float[Array, "k q b *out"]

    def kernels(self, params: Params, order: int) -> list[Float[Array, "..."]]:
        """K⁽¹⁾ … K⁽ᵖ⁾ along the modes, p = `order` up to 4."""
        u = self._gradients(params)
        tensors = [
            self._summed(lambda functions: functions(params)),
            _inner(u, u, (1, 1)),
        ]
        if order == 2:
            return tensors
        v = self._changes(params, u)
        vu = _inner(v, u, (2, 1)).swapaxes(0, 1)  # i k j
        tensors.append(third_of(vu, vu))
        if order > 3:
            vv = _inner(v, v, (2, 2)).transpose(1, 0, 3, 2)  # i k j l
            t = self._third_derivatives(params, u)
            tensors.append(fourth_of(vv, vv, vv, t, t))
        return tensors

    def fourth(self, params: Params) -> Float[Array, "q q q q"]:
        return self.kernels(params, 4)[3]

    def gradient(self, params: Params, i: Int[Array, ""]) -> Params:
        """∇F_i."""
        return jax.tree.map(lambda leaf: leaf[i], self._gradients(params))

    def _summed(self, quantity: Callable[[Callable[..., Any]], Tree]) -> Tree:
        """The sum over blocks of a quantity of θ ↦ (F_1, …, F_q)."""

        def of_block(block: Any) -> Tree:
            x, modes = block

            def functions(params: Params) -> Float[Array, " q"]:
                outputs = self.apply.over(self.parameters(params), x)
                return jnp.tensordot(modes, outputs, axes=outputs.ndim)

            return quantity(functions)

        first = take((self.x, self.modes), 0)
        if len(self.modes) == 1:
            return of_block(first)
        shapes = jax.eval_shape(of_block, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Tree, block: Any) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, total, of_block(block)), None

        return jax.lax.scan(add, zeros, (self.x, self.modes))[0]

    def _gradients(self, params: Params) -> Params:
        """u_i, stacked."""
        return self._summed(lambda functions: jax.jacrev(functions)(params))

    def _changes(self, params: Params, u: Params) -> Params:
        """v_ik, the derivative of u_i along u_k, stacked by k and i."""

        def quantity(functions: Callable[..., Any]) -> Params:
            def change(u_k: Params) -> Params:
                return jax.jvp(jax.jacrev(functions), (params,), (u_k,))[1]

            return jax.lax.map(change, u)

        return self._summed(quantity)

    def _third_derivatives(self, params: Params, u: Params) -> Float[Array, "q q q q"]:
        """T_i[j, k, l], with one derivative for each multiset of three modes."""
        q = self.modes.shape[1]
        chosen = np.array(list(combinations_with_replacement(range(q), 3)))
        place = np.zeros((q, q, q), int)
        for number, modes in enumerate(chosen):
            for slots in permutations(modes):
                place[slots] = number

        def quantity(functions: Callable[..., Any]) -> Float[Array, "choices q"]:
            def along_three(modes: Int[Array, "3"]) -> Float[Array, " q"]:
                derivative = functions
                for m in modes:
                    direction = jax.tree.map(partial(jnp.take, indices=m, axis=0), u)
                    derivative = _derivative(derivative, direction)
                return derivative(params)

            return jax.lax.map(along_three, jnp.asarray(chosen))

        return jnp.moveaxis(self._summed(quantity)[place], 3, 0)


def _derivative(
    function: Callable[[Params], Array], direction: Params
) -> Callable[[Params], Array]:
    return lambda params: jax.jvp(function, (params,), (direction,))[1]


def _inner(first: Params, second: Params, axes: tuple[int, int]) -> Float[Array, "..."]:
    """Inner products over parameters of stacks with `axes` leading axes."""

    def of_leaves(a: Array, b: Array) -> Array:
        a, b = (
            leaf.reshape(*leaf.shape[:k], -1)
            for leaf, k in zip((a, b), axes, strict=True)
        )
        return jnp.tensordot(a, b, axes=(-1, -1))

    products = jax.tree.leaves(jax.tree.map(of_leaves, first, second))
    return jax.tree.reduce(jnp.add, products)
