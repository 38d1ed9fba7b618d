"""The kernels K⁽¹⁾ … K⁽ᵖ⁾ of a network at its parameters."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._internal.archive import ArraySpec
from .._internal.checkpoint import Checkpoint, fingerprint
from .._internal.precision import full_precision
from .._internal.validation import (
    is_traced,
    require_bool,
    require_integer,
    require_order,
    require_path,
)
from .._network.base import trainable
from .._network.finiteness import require_finite_kernels
from .._network.memory import require_memory
from .._problem.inputs import count, take
from .._problem.problem import Problem
from .assembly import form, held_bytes
from .evaluation import Points, points_of


class Kernels(eqx.Module):
    """K⁽¹⁾ … K⁽ᵖ⁾ of one network on the points of one problem: see [`nth.kernels`][].

    `kernels[r]` is K⁽ʳ⁾, r = 1 … order as the paper counts, of shape
    `(m, *out, n, *out, …)`: the first slot over all points, r − 1 later ones over the
    training points. `kernels[1]` is f at initialization, `kernels[2]` the NTK.
    """

    tensors: tuple[Float[Array, "m ..."], ...]
    complete: bool = eqx.field(static=True, default=True)
    """Whether the first slot runs over all m points, as solves require; `False` if
    `rows` were given."""

    def __check_init__(self):
        require_bool("complete", self.complete)
        shapes = _shapes_of(self.tensors, self.complete)
        if shapes is None or [kernel.shape for kernel in self.tensors] != shapes:
            raise ValueError(
                "tensors must be K(1), K(2) and so on, floating arrays of shape "
                "(m, *out), (m, *out, n, *out) and so on, with 0 < n <= m, as "
                "nth.kernels returns them; got "
                f"{jax.tree.map(lambda k: getattr(k, 'shape', k), self.tensors)!r}."
            )

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

    def save(
        self,
        path: str | os.PathLike[str],
        network: Callable[..., Any],
        problem: Problem,
        *,
        filter_spec: PyTree = eqx.is_inexact_array,
        learning_rates: PyTree = None,
    ) -> None:
        """Write the kernels to a file, whole or not at all, with what made them.

        **Arguments:** `path`, a file in a folder that exists; `network`, `problem`,
        `filter_spec` and `learning_rates` as the kernels were formed with, whose digest
        goes into the file (targets and loss do not count).

        **Raises:** `ValueError` if the kernels are visibly of another network or of
        other points, or if the file cannot be written.
        """
        require_path("path", path)
        if is_traced(self, network, problem):
            raise ValueError("kernels cannot be saved under jax.jit.")
        points = points_of(trainable(network, problem, filter_spec, learning_rates))
        outputs = points.apply.over(points.params, points.x)
        specs = [ArraySpec.of(tensor) for tensor in self.tensors]
        own = self.complete and _fit(specs, points)
        if not own or not bool(jnp.allclose(outputs, self[1], rtol=1e-4, atol=1e-4)):
            raise ValueError(
                "kernels are not of this network at all points of this problem: save "
                "them with the network, problem and filter_spec that they were formed "
                "with."
            )
        _file(path, points).write(self.tensors)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        network: Callable[..., Any],
        problem: Problem,
        *,
        filter_spec: PyTree = eqx.is_inexact_array,
        learning_rates: PyTree = None,
    ) -> "Kernels":
        """Read kernels that [`save`][nth.Kernels.save] wrote.

        **Arguments:** as for `save`; targets and loss of `problem` may be others.

        **Raises:** `ValueError` if there is no file, or one that is damaged or was
        written for another network, other points or another `filter_spec`.
        """
        require_path("path", path)
        if is_traced(network, problem):
            raise ValueError("kernels cannot be loaded under jax.jit.")
        points = points_of(trainable(network, problem, filter_spec, learning_rates))
        file = _file(path, points)
        tensors = file.read_leaves(lambda specs: _fit(specs, points))
        if tensors is None:
            raise ValueError(f"path: there is no file {file.path}.")
        return cls(tuple(map(jnp.asarray, tensors)))


def _shapes_of(tensors: Any, complete: bool) -> list[tuple[int, ...]] | None:
    """The shapes that `tensors` must have by that of the first two."""
    arrays = isinstance(tensors, tuple) and all(eqx.is_array(k) for k in tensors)
    if not arrays or not tensors or tensors[0].ndim == 0:
        return None
    if not all(jnp.issubdtype(k.dtype, jnp.floating) and k.size for k in tensors):
        return None
    first = tensors[0].shape
    later = tensors[1].shape[len(first) :] if len(tensors) > 1 else first
    if len(later) != len(first) or later[1:] != first[1:]:
        return None
    if complete and later[0] > first[0]:
        return None
    return [first + later * r for r in range(len(tensors))]


def require_ntk(kernels: Kernels) -> None:
    """Raise `ValueError` unless `kernels` hold K(2)."""
    if kernels.order < 2:
        raise ValueError(
            "kernels hold K(1) alone, and K(2) is needed: form them by "
            "nth.kernels(network, problem, order=2)."
        )


def _fit(specs: list[ArraySpec], points: Points) -> bool:
    """Whether those are arrays of K⁽¹⁾ … K⁽ᵖ⁾ at all of the points."""
    output, slot = points.output, (points.n_train, *points.output.shape)
    rows = (count(points.x), *output.shape)
    most = 64  # dimensions of an array in NumPy
    return 0 < len(specs) <= most and all(
        spec == (output.dtype.name, rows + slot * r) for r, spec in enumerate(specs)
    )


def _file(path: str | os.PathLike[str], points: Points) -> Checkpoint:
    # A lambda is known by what it computes: its name says nothing.
    traced = eqx.filter_make_jaxpr(points.apply)(points.params, take(points.x_train, 0))
    return Checkpoint(
        path,
        fingerprint(points, str(traced[0]), traced[0].consts),
        argument="path",
        foreign="holds kernels of another network, other points or another filter_spec",
    )


@full_precision
def kernels(
    network: Callable[..., Any],
    problem: Problem,
    *,
    order: int,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
    rows: ArrayLike | Sequence[int] | None = None,
    block_size: int | None = None,
    progress: bool = True,
) -> Kernels:
    """Form K⁽¹⁾ … K⁽ᵖ⁾, p = `order`, by K⁽ʳ⁺¹⁾ = D K⁽ʳ⁾ (Huang & Yau, eqs. 9, 10).

    The kernels depend on the network and the points, not on targets or loss. For a
    fully connected network ([`nth.MLP`][] or `eqx.nn.MLP`) K⁽²⁾, K⁽³⁾ and K⁽⁴⁾ are
    formed layer by layer, from products of matrices; for any other, and beyond, by
    forward-mode derivatives.

    **Arguments:**

    - `network`: an `eqx.Module` of one input, [`nth.MLP`][] or [`nth.from_apply`][].
    - `problem`: the points, m = n + q.
    - `order`: the highest r, from 2 to 12.
    - `filter_spec`: what trains, as for `equinox.partition`; the rest is frozen.
    - `learning_rates`: a number, or a pytree prefix of numbers and arrays over the
        network: the rate of each parameter, 1 if left out. With M their diagonal
        matrix, K⁽²⁾ = J M Jᵀ and D is the derivative along M ∇f_β.
    - `rows`: the points of the first slot, as indices into the m points of
        `problem.x`; all of them if left out. Kernels of some rows cannot be solved.
    - `block_size`: how many directions ∇f_β to work on at once. Memory beyond the
        kernels themselves grows in proportion; if left out, it stays near 256 MiB.
    - `progress`: whether to show a bar once the work has lasted for 5 seconds.

    **Returns:** [`nth.Kernels`][], of m·C·(n·C)^{r−1} numbers for r = 1 … order.

    **Raises:** `ValueError` for a bad order, a network that does not fit, or
    kernels that would not fit in memory; that is found before anything is allocated.
    """
    order = require_order("order", order)
    points = points_of(trainable(network, problem, filter_spec, learning_rates), rows)
    _refuse_if_too_large(points, order)
    require_bool("progress", progress)
    if block_size is not None:
        block_size = require_integer("block_size", block_size, 1)
    tensors = form(points, order, block_size, progress)
    n_train = points.n_train if points.with_train else count(points.x)
    at = (points.apply, points.params, points.x, n_train)
    require_finite_kernels(tensors, *at, points.rates)
    return Kernels(tensors, rows is None)


def _refuse_if_too_large(points: Points, order: int) -> None:
    rows, n_slots = points.n_rows, points.n_slots
    formed = kernel_bytes(rows, n_slots, order, points.output.dtype.itemsize)
    require_memory(
        "order",
        f"forming kernels up to r = {order} on {rows} x {n_slots} slots",
        formed + held_bytes(points, order),
        "Use fewer training points, a lower order or float32. Parts of a kernel are "
        "rows=..., nth.contract and nth.project; a solve needs no kernels with "
        'nth.solve(..., method="matrix-free").',
    )


def kernel_bytes(rows: int, n_slots: int, order: int, itemsize: int) -> int:
    """Bytes of K⁽¹⁾ … K⁽ᵖ⁾, of `rows` slots in the first place, `n_slots` in others."""
    return sum(rows * n_slots ** (r - 1) for r in range(1, order + 1)) * itemsize
