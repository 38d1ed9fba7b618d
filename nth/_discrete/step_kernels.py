"""Eq. 29 of Huang & Yau: the NTK after a step, from its derivatives."""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement, permutations
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._custom_types import Params, Scalar
from .._internal.precision import full_precision
from .._internal.validation import require_integer, require_order, require_scale
from .._kernels.assembly import closed_form, form
from .._kernels.costs import kernel_bytes
from .._kernels.evaluation import Points, points_of
from .._kernels.hierarchy_operator import (
    TensorFunction,
    along,
    require_forward_mode,
    slot_gradient,
)
from .._kernels.jacobian import jacobian_products
from .._kernels.third_products import slots_at_once
from .._network.base import TrainableNetwork, trainable
from .._network.finiteness import require_finite_result
from .._network.memory import require_memory, tree_bytes
from .._problem.inputs import take
from .._problem.problem import Problem


class StepKernels(eqx.Module):
    """𝒦⁽²⁾ … 𝒦⁽ᵖ⁾ of one network, and the NTK after a step: see [`nth.step_kernels`][].

    `step_kernels[r]` is 𝒦⁽ʳ⁾, r = 2 … order, of the shape of K⁽ʳ⁾.
    """

    tensors: tuple[Float[Array, "m ..."], ...]

    terms: Float[Array, "r m ..."]
    """(−η)ʲ/j! 𝒦⁽²⁺ʲ⁾·gʲ for j = 0 … order − 2: the first is the NTK at θ₀."""

    ntk: Float[Array, "m ..."]
    """K⁽²⁾ of the network after the step."""

    @property
    def order(self) -> int:
        """The highest r available."""
        return len(self.tensors) + 1

    @property
    def remainder(self) -> Float[Array, "m ..."]:
        """Ω = K⁽²⁾(θ₁) − Σ_j terms[j], of order η^{order − 1}. As a difference it
        carries the rounding errors of K⁽²⁾."""
        return self.ntk - jnp.sum(self.terms, axis=0)

    def __getitem__(self, r: int) -> Float[Array, "m ..."]:
        """𝒦⁽ʳ⁾, r = 2 … order."""
        r = require_integer("r", r, 2)
        if r > self.order:
            raise IndexError(f"these kernels go up to r = {self.order}; got r = {r}.")
        return self.tensors[r - 2]


@full_precision
def step_kernels(
    network: Callable[..., Any],
    problem: Problem,
    learning_rate: Any,
    *,
    order: int,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> StepKernels:
    """Expand the NTK after a step of gradient descent, θ₁ = θ₀ − η M ∇L(θ₀), in η
    (Huang & Yau, eq. 29):

        K⁽²⁾(θ₁) = Σ_{j=0}^{p−2} (−η)ʲ/j! 𝒦⁽²⁺ʲ⁾·gʲ + Ω,
        𝒦⁽²⁺ʲ⁾[a, b, β₁, …, βⱼ] = ∇ʲK⁽²⁾[a, b] (M ∇f_β₁, …, M ∇f_βⱼ),

    where g = ∂L/∂f holds the 1/n. The directions ∇f_β are those at θ₀ and are not
    differentiated, so that 𝒦⁽ʳ⁾ is symmetric in its slots from the third on; 𝒦⁽²⁾ and
    𝒦⁽³⁾ are K⁽²⁾ and K⁽³⁾ of [`nth.kernels`][], and 𝒦⁽⁴⁾ is not K⁽⁴⁾.

    It is for small problems: nested derivatives of K⁽²⁾ along all multisets of slots.
    [`nth.solve_discrete`][] takes steps at any level with no such tensor.

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
    - `learning_rate`: η ≥ 0, which `learning_rates` M multiply.
    - `order`: p, from 2 to 12, the highest r.

    **Returns:** [`nth.StepKernels`][], of m·C·(n·C)^{r−1} numbers for r = 2 … order.

    **Raises:** `ValueError` for bad input, a network without forward-mode derivatives,
    or kernels that would not fit in memory.
    """
    order = require_order("order", order)
    rate = require_scale("learning_rate", learning_rate)
    own = trainable(network, problem, filter_spec, learning_rates)
    points = points_of(own)
    if order > 2:
        purpose = f"an expansion of order {order}"
        require_forward_mode(points.apply, points.params, points.x_train, purpose)
    _require_memory(points, order)
    expanded = _expanded(own, points, jnp.asarray(rate, own.dtype), order)
    at = (points.apply, points.params, points.x, points.n_train)
    otherwise = (
        "a higher derivative of the network is NaN or infinite at some point, or "
        "learning_rate is so large that the step overflows: give a smaller one."
    )
    leaves = jax.tree.leaves(expanded)
    require_finite_result("the expansion", leaves, *at, otherwise=otherwise)
    return expanded


def _require_memory(points: Points, order: int) -> None:
    rows, n_slots = points.n_rows, points.n_slots
    itemsize = points.output.dtype.itemsize
    formed = 2 * kernel_bytes(rows, n_slots, order, itemsize)
    require_memory(
        "order",
        f"kernels of a step up to r = {order} on {rows} x {n_slots} slots",
        formed + n_slots * tree_bytes(points.params),
        "Use fewer training points, a lower order or float32; nth.solve_discrete "
        "takes steps with no kernel.",
    )


@eqx.filter_jit
def _expanded(
    own: TrainableNetwork, points: Points, rate: Scalar, order: int
) -> StepKernels:
    problem, n = own.problem, points.n_train
    ntk = _ntk(points)
    slots = jnp.arange(points.n_slots)
    gradient = slot_gradient(points.apply, points.x_train, points.rates)
    directions = jax.vmap(gradient, in_axes=(None, 0))(points.params, slots)
    outputs = points.apply.over(points.params, points.x_train)
    g = problem.loss.gradient(outputs, problem.y_train).reshape(-1)

    tensors, terms = [], []
    for degree in range(order - 1):
        size = max(1, slots_at_once(points, degree + 2))
        tensor = _derivatives(ntk, points.params, directions, degree, size)
        term = tensor
        for _ in range(degree):
            term = term @ g
        tensors.append(tensor)
        terms.append((-rate) ** degree / math.factorial(degree) * term)

    def moved(leaf: Array, directions: Float[Array, "slots ..."]) -> Array:
        return leaf - rate * jnp.tensordot(g, directions, axes=1)

    params = jax.tree.map(moved, points.params, directions)
    after = eqx.tree_at(lambda points: points.params, points, params)
    slot, out = (n, *points.output.shape), points.output.shape
    return StepKernels(
        tuple(t.reshape(-1, *out, *slot * (t.ndim - 1)) for t in tensors),
        jnp.stack(terms).reshape(order - 1, -1, *out, *slot),
        form(after, 2, None, progress=False)[1],
    )


def _ntk(points: Points) -> TensorFunction:
    """θ ↦ K⁽²⁾."""
    if closed := closed_form(points, 2):
        return closed

    columns, _ = jacobian_products(points, points.n_slots)

    def product(params: Params) -> Float[Array, "rows slots"]:
        at = eqx.tree_at(lambda points: points.params, points, params)
        return columns(at, jnp.zeros((), int), points.n_slots)

    return product


def _derivatives(
    tensor: TensorFunction, params: Params, directions: Params, degree: int, size: int
) -> Float[Array, "rows slots ..."]:
    """∇ʲ of a matrix along all j-tuples of `directions`, j = `degree`, `size` at once:
    one derivative for each multiset, as the order of directions has no effect."""
    if degree == 0:
        return tensor(params)
    number = len(jax.tree.leaves(directions)[0])
    chosen = np.array(list(combinations_with_replacement(range(number), degree)))
    place = np.zeros((number,) * degree, int)
    for position, multiset in enumerate(chosen):
        for slots in set(permutations(multiset.tolist())):
            place[slots] = position

    def held(params: Params, slot: Int[Array, ""]) -> Params:
        return take(directions, slot)

    def at(multiset: Int[Array, " j"]) -> Float[Array, "rows slots"]:
        derivative = tensor
        for slot in multiset:
            derivative = partial(along, derivative, held, slot=slot)
        return derivative(params)

    values = jax.lax.map(at, jnp.asarray(chosen), batch_size=min(size, len(chosen)))
    return jnp.moveaxis(values, 0, -1)[..., place]
