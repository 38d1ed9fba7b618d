"""The kernels K⁽¹⁾ … K⁽ᵖ⁾ of a network at its parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from ._errors import require_integer
from ._form import Points, form
from ._memory import available_bytes
from ._network import parametrize
from ._problem import Problem


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
    if block_size is not None:
        block_size = require_integer("block_size", block_size, 1)
    points = Points(apply, params, problem.x_train, problem.x_test, with_train=True)
    return Kernels(form(points, order, block_size, progress))


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
