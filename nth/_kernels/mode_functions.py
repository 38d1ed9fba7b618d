"""Kernels of F_i = Σ_β e_i[β] f_β, for a few modes e_i, as functions of θ.

Each is a sum over blocks of points.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement, permutations
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._custom_types import Params
from .._network.base import OutputFunction
from .._network.memory import activation_bytes
from .._problem.inputs import take
from .evaluation import Points
from .mlp_kernels import fourth_of, third_of

# Maximum bytes of one block of points.
_BLOCK_BYTES = 2**28

Tree = TypeVar("Tree")


def blocks_of(
    points: Points, modes: Float[Array, "q n *out"]
) -> tuple[PyTree[Shaped[Array, "k b ..."]], Float[Array, "k q b *out"]]:
    """Points and modes in blocks; padding of the last block has weight zero."""
    n, q = points.n_train, len(modes)
    per_point = activation_bytes(points.apply, points.params, take(points.x_train, 0))
    size = min(n, max(1, _BLOCK_BYTES // (8 * q * per_point)))
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


class ModeFunctions(eqx.Module):
    """F_i = Σ_β e_i[β] f_β in blocks of points, and their kernels as functions of θ."""

    apply: OutputFunction
    parameters: Callable[[Params], Params]
    """Maps parameters whose learning rates are 1 to those of the network."""

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
