"""The kernels K⁽¹⁾ … K⁽ᵖ⁾ of a network at its parameters."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._internal.archive import ArraySpec
from .._internal.checkpoint import Checkpoint, fingerprint, require_path
from .._internal.precision import full_precision
from .._internal.validation import (
    is_traced,
    require_bool,
    require_integer,
    require_name,
    require_order,
)
from .._network.base import trainable
from .._network.memory import require_memory
from .._problem.inputs import take
from .._problem.problem import Problem
from .assembly import form, outputs_at
from .costs import held_bytes, kernel_bytes
from .evaluation import Points, points_of, require_finite_kernels
from .gradient_products import PAIRINGS, Pairing
from .kernel_shapes import SECOND, pairing_of, shapes_of
from .output_pairs import output_pairs


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
    outputs: str = eqx.field(static=True, default="full")
    """The pairs of outputs in K⁽²⁾: `"full"` for all of them, `"diagonal"` for each
    output with itself, `"trace"` for the mean of these. Solves require `"full"`."""

    def __check_init__(self):
        require_bool("complete", self.complete)
        outputs = require_name("outputs", self.outputs, PAIRINGS)
        shapes = shapes_of(self.tensors, self.complete, outputs)
        if shapes is None or [kernel.shape for kernel in self.tensors] != shapes:
            raise ValueError(
                "tensors must be K(1), K(2) and so on, floating arrays of shape "
                f"(m, *out), {SECOND[outputs]}, with 0 < n <= m, as nth.kernels "
                "returns them; got "
                f"{jax.tree.map(lambda k: getattr(k, 'shape', k), self.tensors)!r}."
            )

    @property
    def order(self) -> int:
        """The highest r available."""
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
        """Atomically write the kernels to a file, with the identity of the network.

        **Arguments:** `path`, a file in a folder that exists; `network`, `problem`,
        `filter_spec` and `learning_rates` as the kernels were formed with, whose digest
        is stored in the file (targets and loss do not matter).

        **Raises:** `ValueError` if the kernels do not match the network's outputs at
        the points, or if the file cannot be written.
        """
        require_path("path", path)
        if is_traced(self, network, problem):
            raise ValueError("kernels cannot be saved under jax.jit.")
        points = points_of(trainable(network, problem, filter_spec, learning_rates))
        outputs = points.apply.over(points.params, points.x)
        specs = [ArraySpec.of(tensor) for tensor in self.tensors]
        own = self.complete and pairing_of(specs, points) == self.outputs
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
        tensors = file.read_leaves(lambda specs: pairing_of(specs, points) is not None)
        if tensors is None:
            raise ValueError(f"path: there is no file {file.path}.")
        outputs = pairing_of([ArraySpec.of(tensor) for tensor in tensors], points)
        assert outputs is not None
        return cls(tuple(map(jnp.asarray, tensors)), outputs=outputs)


def require_ntk(kernels: Kernels) -> None:
    """Raise `ValueError` unless `kernels` hold K(2)."""
    if kernels.order < 2:
        raise ValueError(
            "kernels hold K(1) alone, and K(2) is needed: form them by "
            "nth.kernels(network, problem, order=2)."
        )


def require_all_outputs(kernels: Kernels, purpose: str) -> None:
    """Raise `ValueError` unless `kernels` hold all pairs of outputs, as `purpose`, the
    subject of a sentence, requires."""
    if kernels.outputs != "full":
        raise ValueError(
            f'kernels were formed with outputs="{kernels.outputs}", and {purpose} '
            'takes all pairs of outputs: form them again with outputs="full". (A '
            'solve needs no kernels with nth.solve(..., method="matrix-free").)'
        )


def _file(path: str | os.PathLike[str], points: Points) -> Checkpoint:
    # A lambda is identified by what it computes, since its name is not unique.
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
    outputs: str = "full",
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
    - `filter_spec`: which leaves are trained, as for `equinox.partition`; the others
        are frozen.
    - `learning_rates`: a number, or a pytree prefix of numbers and arrays over the
        network: the rate of each parameter, 1 if left out. With M their diagonal
        matrix, K⁽²⁾ = J M Jᵀ and D is the derivative along M ∇f_β.
    - `rows`: the points of the first slot, as indices into the m points of
        `problem.x`; all of them if left out. Kernels of some rows cannot be solved.
    - `outputs`: the pairs of outputs in K⁽²⁾, for a network with several and `order=2`.
        `"full"` for all of them; `"diagonal"` for K⁽²⁾[a, c, b, c], the kernel of each
        output c, of shape `(m, n, *out)`; `"trace"` for the mean of these over the C
        outputs, of shape `(m, n)`. The last two take a C-th of the time, or less, and
        of the memory, and cannot be solved. A network with one output of shape `()`
        has one kernel, which is full.
    - `block_size`: how many directions ∇f_β to process at once. Memory beyond the
        kernels themselves is proportional to it; by default it stays near 256 MiB.
    - `progress`: whether to show a progress bar after 5 seconds.

    **Returns:** [`nth.Kernels`][], of m·C·(n·C)^{r−1} numbers for r = 1 … order.

    **Raises:** `ValueError` for a bad order, a network that does not fit, or
    kernels that would not fit in memory, which is checked before allocation.
    """
    order = require_order("order", order)
    pairing = require_name("outputs", outputs, PAIRINGS)
    if pairing != "full" and order > 2:
        raise ValueError(
            f'outputs="{pairing}" is a part of K(2), and order is {order}: give '
            'order=2, or outputs="full".'
        )
    points = points_of(trainable(network, problem, filter_spec, learning_rates), rows)
    if not points.output.shape:
        pairing = "full"
    _require_memory(points, order, pairing)
    require_bool("progress", progress)
    if block_size is not None:
        block_size = require_integer("block_size", block_size, 1)
    if pairing == "full":
        tensors = form(points, order, block_size, progress)
    else:
        pairs = output_pairs(points, pairing, block_size, progress)
        tensors = outputs_at(points), pairs
    require_finite_kernels(tensors, points)
    return Kernels(tensors, rows is None, pairing)


def _require_memory(points: Points, order: int, outputs: Pairing) -> None:
    rows, n_slots = points.n_rows, points.n_slots
    itemsize = points.output.dtype.itemsize
    if outputs == "full":
        formed = kernel_bytes(rows, n_slots, order, itemsize)
        size = f"{rows} x {n_slots} slots"
    else:  # with the copy that reorders the diagonal
        copies = 2 * points.output.size if outputs == "diagonal" else 1
        entries = rows * n_slots // points.output.size**2
        formed = (rows + copies * entries) * itemsize
        size = f'pairs of points, with outputs="{outputs}"'
    parts = "rows=..., nth.contract and nth.project"
    if outputs == "full" and points.output.shape:
        parts = f'outputs="trace", {parts}'
    if order == 2:
        parts = f"nth.save_ntk, which writes K(2) to a file, {parts}"
    require_memory(
        "order",
        f"forming kernels up to r = {order} on {size}",
        formed + held_bytes(points, order),
        f"Use fewer training points, a lower order or float32. Parts of a kernel are "
        f"{parts}; a solve needs no kernels with "
        'nth.solve(..., method="matrix-free").',
    )
