"""Gradient flow of the network itself: the reference."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from .._custom_types import Inputs, Params, Scalar
from .._internal.validation import require_scale
from .._kernels.assembly import form
from .._kernels.evaluation import Points
from .._kernels.hierarchy_operator import along_jacobian, require_forward_mode
from .._network.base import OutputFunction, trainable
from .._network.learning_rates import as_decay, by_rates
from .._problem.inputs import require_like, require_points_like
from .._problem.problem import Problem
from .base import require_state, require_vector, two_norm
from .parameter_dynamics import AbstractDescent


class GradientFlow(AbstractDescent):
    """The trained network in continuous time (Huang & Yau, eq. 3):

        dθ/dt = −M (∇_θ L(θ) + λ θ),        ∇_θ L(θ) = J(θ)ᵀ g,

    with learning rates M (default 1) and weight decay λ (default 0).

    **Arguments:** `network`, `problem`, `filter_spec` and `learning_rates` as for
    [`nth.kernels`][]; `weight_decay` is λ ≥ 0.
    """

    problem: Problem
    apply: OutputFunction
    params: Params
    rates: Params | None
    weight_decay: Scalar | None
    label: str = eqx.field(static=True)
    method: ClassVar[str] = "gradient flow"
    truncated: ClassVar[bool] = False

    def __init__(
        self,
        network: Callable[..., Any],
        problem: Problem,
        *,
        filter_spec: PyTree = eqx.is_inexact_array,
        learning_rates: PyTree = None,
        weight_decay: Any = 0.0,
    ):
        trained = trainable(network, problem, filter_spec, learning_rates)
        self.apply, self.params = trained.apply, trained.params
        self.problem, self.rates = trained.problem, trained.rates
        decay = require_scale("weight_decay", weight_decay)
        self.weight_decay = as_decay(decay, self.params)
        self.label = "network"

    def initial_state(self) -> Params:
        return self.params

    def gradient(self, state: Params, x: Inputs, y: Shaped[Array, "b ..."]) -> Params:
        """∇_θ of the mean loss over the points `x`, `y`."""
        require_state(state, self.params)
        require_points_like("x", x, "x_train", self.problem.x_train, y)

        def loss(params: Params) -> Scalar:
            return self.problem.loss(self.apply.over(params, x), y)

        return jax.grad(loss)(state)

    def scaled(self, direction: Params) -> Params:
        require_like("direction", direction, self.params, "a gradient")
        return by_rates(self.rates, direction)

    def parameters(self, state: Params) -> Params:
        require_state(state, self.params)
        return state

    def over(self, params: Params, x: Inputs) -> Float[Array, "points *out"]:
        require_like("params", params, self.params, "parameters(state)")
        require_points_like("x", x, "x_train", self.problem.x_train)
        return self.apply.over(params, x)

    def penalty(self, state: Params) -> Scalar:
        """λ/2 ‖θ‖²."""
        require_state(state, self.params)
        leaves = jax.tree.leaves(state)
        if self.weight_decay is None:
            return jnp.zeros((), leaves[0].dtype)
        return self.weight_decay * sum(jnp.sum(leaf**2) for leaf in leaves) / 2

    def outputs(self, state: Params) -> Float[Array, "m *out"]:
        require_state(state, self.params)
        return self.apply.over(state, self.problem.x)

    def ntk(self, state: Params) -> Float[Array, "m ..."]:
        require_state(state, self.params)
        problem = self.problem
        x = (problem.x_train, problem.x_test)
        points = Points(self.apply, state, *x, with_train=True, rates=self.rates)
        return form(points, 2, None, progress=False)[1]

    def ntk_product(
        self, state: Params, vector: Float[Array, "n *out"]
    ) -> Float[Array, "m *out"]:
        require_state(state, self.params)
        require_vector(vector, self.problem.n_train, self.apply.output)
        x = self.problem.x_train
        require_forward_mode(self.apply, self.params, x, "a product with the kernel")
        return along_jacobian(self.outputs, self.apply, x, vector, self.rates)(state)

    def error_norm(self, scaled: Params) -> Scalar:
        require_like("scaled", scaled, self.params, "initial_state()")
        return two_norm(scaled)
