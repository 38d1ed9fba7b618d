"""The kernels K⁽¹⁾ … K⁽ᵖ⁾ of a network at its parameters: D iterated, in blocks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped
from tqdm.auto import tqdm

from ._errors import is_traced, require_integer
from ._lift import along, lift, slot_gradient
from ._memory import activation_bytes, available_bytes, parameter_bytes
from ._network import OutputFunction, parametrize
from ._problem import Problem
from ._rates import rates_of
from ._types import Params

# Bytes that the directions worked on at once may take, unless `block_size` is given.
_BLOCK_BYTES = 2**28


class Kernels(eqx.Module):
    """K⁽¹⁾ … K⁽ᵖ⁾ of one network on the points of one problem: see [`nth.kernels`][].

    `kernels[r]` is K⁽ʳ⁾, r = 1 … order as the paper counts, of shape
    `(m, *out, n, *out, …)`: the first slot over all points, r − 1 later ones over the
    training points. `kernels[1]` is f at initialisation, `kernels[2]` the NTK.
    """

    tensors: tuple[Float[Array, "m ..."], ...]

    @property
    def order(self) -> int:
        """The highest r held."""
        return len(self.tensors)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of one output of the network."""
        return self.tensors[0].shape[1:]

    def __iter__(self) -> Iterator[Float[Array, "m ..."]]:
        """K⁽¹⁾, K⁽²⁾ and so on."""
        return iter(self.tensors)

    def __getitem__(self, r: int) -> Float[Array, "m ..."]:
        """K⁽ʳ⁾, r = 1 … order."""
        r = require_integer("r", r, 1)
        if r > self.order:
            raise IndexError(f"these kernels go up to r = {self.order}; got r = {r}.")
        return self.tensors[r - 1]


def kernels(
    network: Callable[..., Any],
    problem: Problem,
    order: int,
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    block_size: int | None = None,
    progress: bool = True,
) -> Kernels:
    """Form K⁽¹⁾ … K⁽ᵖ⁾, p = `order`, by K⁽ʳ⁺¹⁾ = D K⁽ʳ⁾ (Huang & Yau, eqs. 9, 10).

    The kernels depend on the network and the points, not on targets or loss.

    **Arguments:**

    - `network`: an `eqx.Module` of one input, [`nth.MLP`][] or [`nth.from_apply`][].
    - `problem`: the points, m = n + q.
    - `order`: the highest r, at least 2.
    - `filter_spec`: what trains, as for `equinox.partition`; the rest is frozen.
    - `learning_rates`: a number, or a pytree prefix of numbers and arrays over the
        network: the rate of each parameter, 1 if left out. With M their diagonal
        matrix, K⁽²⁾ = J M Jᵀ and D is the derivative along M ∇f_β.
    - `block_size`: how many directions ∇f_β to work on at once. Memory beyond the
        kernels themselves grows in proportion; if left out, it stays near 256 MiB.
    - `progress`: whether to show a bar once the work has lasted for 5 seconds.

    **Returns:** [`nth.Kernels`][], of m·C·(n·C)^{r−1} numbers for r = 1 … order.

    **Raises:** `ValueError` for an order below 2, a network that does not fit, or
    kernels that would not fit in memory; that is found before anything is allocated.
    """
    order = require_integer("order", order, 2)
    apply, params, problem = parametrize(network, problem, filter_spec)
    output = jax.eval_shape(apply, params, problem.x_train[0])
    n_slots = problem.n_train * output.size
    rows = (problem.n_train + problem.n_test) * output.size
    _refuse_if_too_large(rows, n_slots, order, output.dtype.itemsize)
    if block_size is None:
        block_size = _directions_at_once(apply, params, problem.x, order)
    block_size = require_integer("block_size", block_size, 1)
    tensors = [apply.over(params, problem.x)]
    rates = rates_of(learning_rates, network, params)
    data = (apply, params, rates, problem.x_train, problem.x)
    for r in range(2, order + 1):
        # The innermost slots are worked on together first, the new one last.
        sizes = _split_block(block_size, n_slots, r - 1)
        flat = (*tensors[0].shape, *[n_slots] * (r - 1))
        out = jnp.zeros(flat, output.dtype)
        tensor = _fill(data, out, sizes, progress)
        tensors.append(tensor.reshape(*tensors[-1].shape, -1, *output.shape))
    return Kernels(tuple(tensors))


def _fill(data: Any, out: Array, sizes: tuple[int, ...], progress: bool) -> Array:
    """K⁽ʳ⁾ into `out`, block after block of its last slot."""
    n_slots = out.shape[-1]
    starts = range(0, n_slots, sizes[-1])
    if is_traced(data, out):

        def step(i: Array, out: Array) -> Array:
            return _fill_block((data, i * sizes[-1]), out, sizes)

        return jax.lax.fori_loop(0, len(starts), step, out)
    bar = tqdm(
        starts, f"K({len(sizes) + 1})", delay=5, leave=False, disable=not progress
    )
    for start in bar:
        out = _fill_block_in_place((data, jnp.asarray(start)), out, sizes)
        if progress:
            out.block_until_ready()
    return out


def _fill_block(inputs: Any, out: Array, sizes: tuple[int, ...]) -> Array:
    (apply, params, rates, x_train, x), start = inputs
    n_slots = out.shape[-1]
    gradient = slot_gradient(apply, x_train, rates)
    tensor = partial(apply.over, xs=x)
    for block in sizes[:-1]:
        tensor = lift(tensor, gradient, n_slots, block)
    start = jnp.minimum(start, n_slots - sizes[-1])  # the last block overlaps
    slots = start + jnp.arange(sizes[-1])
    column = partial(along, tensor, gradient, params)
    block = jax.vmap(column, out_axes=-1)(slots)
    return jax.lax.dynamic_update_slice_in_dim(out, block, start, axis=-1)


_fill_block_in_place = eqx.filter_jit(_fill_block, donate="all-except-first")


def _split_block(block_size: int, n_slots: int, depth: int) -> tuple[int, ...]:
    """How many slots of each later index go together, the innermost first."""
    sizes = []
    for _ in range(depth):
        sizes.append(max(1, min(n_slots, block_size)))
        block_size //= sizes[-1]
    return tuple(sizes)


def _directions_at_once(
    apply: OutputFunction, params: Params, x: Shaped[Array, "m *in"], order: int
) -> int:
    """How many directions keep within `_BLOCK_BYTES`: each holds parameters and
    activations of its own, and each further derivative doubles them."""
    one = parameter_bytes(params) + len(x) * activation_bytes(apply, params, x[0])
    return max(1, _BLOCK_BYTES // (2 ** (order - 1) * one))


def _refuse_if_too_large(rows: int, n_slots: int, order: int, itemsize: int) -> None:
    needed = kernel_bytes(rows, n_slots, order, itemsize)
    available = available_bytes()
    if needed > available:
        raise ValueError(
            f"order: kernels up to r = {order} on {rows} x {n_slots} slots take "
            f"{needed / 2**30:,.1f} GiB, and {available / 2**30:,.1f} GiB are "
            'available. Use method="matrix-free", fewer training points, a lower '
            "order, or float32."
        )


def kernel_bytes(rows: int, n_slots: int, order: int, itemsize: int) -> int:
    """Bytes of K⁽¹⁾ … K⁽ᵖ⁾, of `rows` slots in the first place, `n_slots` in others."""
    return sum(rows * n_slots ** (r - 1) for r in range(1, order + 1)) * itemsize
