"""The level-p hierarchy without n^p tensors: a series in ε for the parameters."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from .._custom_types import Inputs, Params, Scalar
from .._internal.validation import require_integer, require_order, require_scale
from .._kernels.assembly import form
from .._kernels.evaluation import Points
from .._kernels.hierarchy_operator import require_forward_mode
from .._network.base import OutputFunction, trainable
from .._network.learning_rates import as_decay, by_rates
from .._problem.inputs import (
    as_inputs,
    count,
    require_like,
    require_points_like,
    require_same_layout,
    take,
)
from .._problem.problem import Problem
from .base import require_vector
from .batching import as_blocks, counted_rows, default_block, in_blocks
from .parameter_dynamics import AbstractDescent
from .series import SeriesState, Steps, require_state
from .taylor_coefficients import Coefficients, best_coefficients, by_jvp
from .truncation import AbstractTruncation, series_factor


class MatrixFreeHierarchy(AbstractDescent, AbstractTruncation):
    """The truncated hierarchy as a series in ε, at the cost of a few gradients.

    With a weight ε for each application of D, θ_ε = θ₀ + Σ_k ε^k u_k solves
    dθ/dt = −ε J(θ)ᵀ g. With [·]_k the coefficient of ε^k,

        du_k/dt = −[J(θ_ε)ᵀ g]_{k−1},   u_k(0) = 0,   k = 1 … p−1,
        f̃ = Σ_{k=0}^{p−1} [f(θ_ε)]_k,    g = ∂L/∂f at f̃ on the training points,

    and f̃ is exactly the solution of [`nth.DenseHierarchy`][] at the same level: the
    Chen–Fliess series of gradient flow, truncated to words of length p − 1.

    The state holds u_1, …, u_{p−1}: p − 1 copies of the parameters. An evaluation costs
    a few gradients of the loss: its time is linear in n, its memory that of one block
    of points.

    With learning rates M and a weight decay λ, which carries no factor ε,
    dθ/dt = −M (ε J(θ)ᵀ g + λ θ). Then θ₀ decays too: it is the coefficient u_0, which
    is also part of the state, and du_k/dt = −M ([J(θ_ε)ᵀ g]_{k−1} + λ u_k).

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
    - `order`: the level p, from 2 to 12.
    - `weight_decay`: λ ≥ 0; adds λ/2 ‖θ‖² to the training loss.
    - `block_size`: the number of points evaluated together. By default, as many as take
        about 64 MiB on a CPU, 1 GiB elsewhere. With points sharded over several
        devices, give a multiple of the number of devices.

    **Raises:** `ValueError` for another order, or an unsuitable network or learning
    rates.
    """

    problem: Problem
    apply: OutputFunction
    params: Params
    rates: Params | None
    weight_decay: Scalar | None
    order: int = eqx.field(static=True)
    block_size: int = eqx.field(static=True)
    coefficients: Coefficients = eqx.field(static=True)
    label: str = eqx.field(static=True)
    method: ClassVar[str] = "matrix-free"
    truncated: ClassVar[bool] = True

    def __init__(
        self,
        network: Callable[..., Any],
        problem: Problem,
        *,
        order: int,
        filter_spec: PyTree = eqx.is_inexact_array,
        learning_rates: PyTree = None,
        weight_decay: Any = 0.0,
        block_size: int | None = None,
    ):
        self.order = require_order("order", order)
        trained = trainable(network, problem, filter_spec, learning_rates)
        self.apply, self.params = trained.apply, trained.params
        self.problem, self.rates = trained.problem, trained.rates
        decay = require_scale("weight_decay", weight_decay)
        self.weight_decay = as_decay(decay, self.params)
        if block_size is None:
            block_size = default_block(self.apply, self.params, problem, order)
        self.block_size = require_integer("block_size", block_size, 1)
        require_forward_mode(
            self.apply, self.params, problem.x_train, 'the method "matrix-free"'
        )
        first = take(problem.x_train, slice(1))
        self.coefficients = best_coefficients(
            lambda params: self.apply.over(params, first), self.params
        )
        self.label = f"level-{order} hierarchy"

    def initial_state(self) -> SeriesState:
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        base = None if self.weight_decay is None else self.params
        return SeriesState(base, (zeros,) * (self.order - 1))

    def gradient(
        self, state: SeriesState, x: Inputs, y: Shaped[Array, "b ..."]
    ) -> SeriesState:
        """[J(θ_ε)ᵀ g]_{k−1} over the points `x`, `y`; 0 for u_0, if present."""
        base, steps = self._series(state)
        require_points_like("x", x, "x_train", self.problem.x_train, y)
        points = count(x)

        def add(total: Steps, block: Any) -> tuple[Steps, None]:
            part = self._pull_back(base, steps, points, *block)
            return jax.tree.map(jnp.add, total, part), None

        blocks = self._blocks(x, y)
        if count(blocks) == 1:
            pulled = self._pull_back(base, steps, points, *take(blocks, 0))
        else:
            zeros = jax.tree.map(jnp.zeros_like, steps)
            pulled = jax.lax.scan(add, zeros, blocks)[0]
        return SeriesState(jax.tree.map(jnp.zeros_like, state.base), pulled)

    def scaled(self, direction: SeriesState) -> SeriesState:
        self._series(direction, "direction", moved=True)
        base = direction.base
        return SeriesState(
            None if base is None else by_rates(self.rates, base),
            tuple(by_rates(self.rates, step) for step in direction.steps),
        )

    def parameters(self, state: SeriesState) -> Params:
        """θ₀ + Σ_k u_k."""
        base, steps = self._series(state)
        return jax.tree.map(lambda leaf, *terms: sum(terms, leaf), base, *steps)

    def penalty(self, state: SeriesState) -> Scalar:
        """λ/2 Σ_{k<p} [‖θ_ε‖²]_k, to the same order as f̃."""
        self._series(state, moved=True)
        if self.weight_decay is None:
            return jnp.zeros((), jax.tree.leaves(state)[0].dtype)
        return self.weight_decay * state.squared_norm() / 2

    def outputs(self, state: SeriesState) -> Float[Array, "m *out"]:
        return self._outputs(state, self.problem.x)

    def output_terms(self, state: SeriesState) -> Float[Array, "p m *out"]:
        """The terms [f(θ_ε)]_k on all points, k = 0 … p−1, whose sum is f̃."""
        base, steps = self._series(state)

        def block(x: Inputs) -> Float[Array, "b p *out"]:
            return jnp.stack(self._terms(x, base, steps), axis=1)

        return jnp.moveaxis(in_blocks(block, self.problem.x, self.block_size), 1, 0)

    def output_errors(self, state: SeriesState) -> Float[Array, "m *out"]:
        """The network at θ₀ + Σ_k u_k minus f̃, times a calibrated factor.

        Both have the terms [f]_k for k < p, so the difference is of the order of the
        first term that f̃ lacks. It costs one forward pass.
        """
        there = self.over(self.parameters(state), self.problem.x)
        return series_factor(self.order) * (there - self.outputs(state))

    def predict(self, state: SeriesState, x_new: Any) -> Float[Array, "points *out"]:
        """f̃ at new points, Σ_k [f(θ_ε, x)]_k.

        **Arguments:**

        - `state`: the `Solution.state` of a solution of this hierarchy.
        - `x_new`: inputs like those of `problem`, shape `(points, *in)`.

        **Raises:** `ValueError` for inputs whose layout differs from that of `problem`,
        or a state of another method, order or network.
        """
        x = as_inputs("x_new", x_new)
        require_same_layout("x_new", x, "x_train", self.problem.x_train)
        return self._outputs(state, x)

    def ntk(self, state: SeriesState) -> Float[Array, "m ..."]:
        """K̃⁽²⁾ = Σ_{k=0}^{p−2} [K⁽²⁾(θ_ε)]_k."""
        base, (*lower, _) = self._series(state)
        x = (self.problem.x_train, self.problem.x_test)

        def kernel(params: Params) -> Float[Array, "m ..."]:
            points = Points(self.apply, params, *x, with_train=True, rates=self.rates)
            return form(points, 2, None, progress=False)[1]

        terms = by_jvp(kernel, base, lower)
        return sum(terms[1:], terms[0])

    def ntk_product(
        self, state: SeriesState, vector: Float[Array, "n *out"]
    ) -> Float[Array, "m *out"]:
        """K̃⁽²⁾ · v = Σ_{k=0}^{p−2} [J(θ_ε) M J(θ_ε)ᵀ v]_k.

        As in `gradient`, one pull-back of v through [f(θ_ε)]_{p−2} gives every
        w_k = M [J(θ_ε)ᵀ v]_k; pushed forward as tangents of the u_k, they give the sum.
        """
        base, (*lower, _) = self._series(state)
        require_vector(vector, self.problem.n_train, self.apply.output)

        def series(x: Inputs, terms: list[Params]) -> list[Array]:
            base, *steps = terms
            return self._terms(x, base, steps)

        def add(total: list[Params], block: Any) -> tuple[list[Params], None]:
            x, part, counted = block
            counted = jnp.expand_dims(counted, range(1, part.ndim))
            _, pull = jax.vjp(lambda terms: series(x, terms)[-1], terms)
            return jax.tree.map(
                jnp.add, total, *pull(jnp.where(counted, part, 0))
            ), None

        terms = [base, *lower]
        x = self.problem.x_train
        blocks = self._blocks(x, vector)
        zeros = jax.tree.map(jnp.zeros_like, terms)
        pulled = jax.lax.scan(add, zeros, blocks)[0]
        moved = [by_rates(self.rates, step) for step in reversed(pulled)]

        def pushed(x: Inputs) -> Array:
            return jax.jvp(lambda terms: sum(series(x, terms)), (terms,), (moved,))[1]

        return in_blocks(pushed, self.problem.x, self.block_size)

    def error_norm(self, scaled: SeriesState) -> Scalar:
        self._series(scaled, "scaled", moved=True)
        terms = [step for step in (scaled.base, *scaled.steps) if step is not None]
        squares = [
            sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(step)) for step in terms
        ]
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return jnp.sqrt(jnp.max(jnp.stack(squares)) / size)

    def _series(
        self, state: Any, argument: str = "state", *, moved: bool = False
    ) -> tuple[Params, Steps]:
        """u_0, and u_1 … u_{p−1}; under weight decay a `moved` state must have u_0."""
        decays = self.weight_decay is not None if moved else None
        require_state(argument, state, self.order, self.params, decays)
        base = self.params if state.base is None else state.base
        return base, state.steps

    def _pull_back(
        self,
        base: Params,
        steps: Steps,
        points: int,
        x: Inputs,
        y: Shaped[Array, "b ..."],
        counted: Bool[Array, " b"],
    ) -> Steps:
        """[J(θ_ε)ᵀ g]_0, …, [J(θ_ε)ᵀ g]_{p−2} of one block, by one reverse pass.

        g is the gradient of the mean loss over `points` points, which include the
        block.

        Since ∂[f(θ_ε)]_k/∂u_j = [J(θ_ε)]_{k−j}, the pull-back of g through the single
        coefficient k = p − 2 gives all of them. The highest, k = p − 1, is needed only
        for f̃ and is not differentiated.
        """
        *lower, last = steps

        def series(base: Params, lower: list[Params]) -> tuple[Array, Array]:
            terms = self._terms(x, base, [*lower, last])
            return terms[-2], sum(terms[1:], terms[0])

        _, pull, outputs = jax.vjp(series, base, lower, has_aux=True)
        g = self.problem.loss.gradient(outputs, y) * (count(x) / points)
        counted = jnp.expand_dims(counted, range(1, g.ndim))
        base, lower = pull(jnp.where(counted, g, 0))
        return (*reversed(lower), base)

    def _outputs(self, state: SeriesState, x: Inputs) -> Float[Array, "points *out"]:
        base, steps = self._series(state)

        def block(x: Inputs) -> Float[Array, "b *out"]:
            terms = self._terms(x, base, steps)
            return sum(terms[1:], terms[0])

        return in_blocks(block, x, self.block_size)

    def _terms(
        self, x: Inputs, base: Params, steps: Sequence[Params]
    ) -> list[Float[Array, "points *out"]]:
        """[f(θ_ε)]_k at `x`, for k = 0 … len(steps)."""

        def along(params: Params) -> Array:
            return self.apply.over(params, x)

        return self.coefficients(along, base, steps) if steps else [along(base)]

    def over(self, params: Params, x: Inputs) -> Float[Array, "points *out"]:
        require_like("params", params, self.params, "parameters(state)")
        require_points_like("x", x, "x_train", self.problem.x_train)
        return in_blocks(partial(self.apply.over, params), x, self.block_size)

    def _blocks(self, *rows: Inputs) -> tuple[Any, ...]:
        """Each of `rows` in blocks, and a mask of the rows that are not padding."""
        size = self.block_size
        return (*as_blocks(rows, size), counted_rows(count(rows), size))
