"""Gradient flow of the Taylorized network: an alternative model of training."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._custom_types import Inputs, Params, Scalar
from .._internal.validation import require_order
from .._kernels.hierarchy_operator import require_forward_mode
from .._network.base import OutputFunction, trainable
from .._network.learning_rates import by_rates
from .._problem.inputs import require_like, take
from .._problem.problem import Problem
from .base import AbstractDynamics, require_state, two_norm
from .taylor_coefficients import Coefficients, best_coefficients


class TaylorizedFlow(AbstractDynamics):
    """Gradient flow of the Taylor polynomial of the network around its initialization.

    With w = θ − θ₀, the network is replaced by

        f_d(w, x) = Σ_{k=0}^{d} (1/k!) ∇ᵏf(θ₀, x)[w, …, w],

    which is trained by dw/dt = −M ∇_w L(f_d(w)) (Bai et al. 2020), with learning rates
    M (default 1).

    Degree 1 is the linearized network (Lee et al. 2019): its outputs are those of level
    p = 2, for any loss. Higher degrees are **not** level p = d + 1 of the hierarchy.
    The outputs of both are exact to order t^d; beyond that the hierarchy keeps the
    words of at most d gradients, while the Taylorized network keeps every power of t,
    but of a function that is not the network. Its loss never increases, because it is a
    gradient flow, so no window is determined.

    The state is w. An evaluation costs a few gradients of the loss, as for
    [`nth.MatrixFreeHierarchy`][].

    **Arguments:**

    - `network`, `problem`, `filter_spec`, `learning_rates`: as for [`nth.kernels`][].
    - `degree`: d ≥ 1.

    **Raises:** `ValueError` for a degree below 1 or an unsuitable network.
    """

    problem: Problem
    apply: OutputFunction
    params: Params
    rates: Params | None
    degree: int = eqx.field(static=True)
    coefficients: Coefficients = eqx.field(static=True)
    label: str = eqx.field(static=True)
    method: ClassVar[str] = "Taylorized"
    truncated: ClassVar[bool] = False

    def __init__(
        self,
        network: Callable[..., Any],
        problem: Problem,
        *,
        degree: int,
        filter_spec: PyTree = eqx.is_inexact_array,
        learning_rates: PyTree = None,
    ):
        self.degree = require_order("degree", degree, 1)
        trained = trainable(network, problem, filter_spec, learning_rates)
        self.apply, self.params = trained.apply, trained.params
        self.problem, self.rates = trained.problem, trained.rates
        require_forward_mode(
            self.apply, self.params, problem.x_train, "a Taylor polynomial"
        )
        self.coefficients = best_coefficients(
            lambda params: self.apply.over(params, take(problem.x_train, slice(1))),
            self.params,
        )
        self.label = (
            "linearized network" if degree == 1 else f"network Taylorized to {degree}"
        )

    def initial_state(self) -> Params:
        return jax.tree.map(jnp.zeros_like, self.params)

    def vector_field(self, t: Scalar, state: Params, args: Any) -> Params:
        require_state(state, self.params)

        def loss(state: Params) -> Scalar:
            outputs = self.polynomial(state, self.problem.x_train)
            return self.problem.loss(outputs, self.problem.y_train)

        return jax.tree.map(jnp.negative, by_rates(self.rates, jax.grad(loss)(state)))

    def outputs(self, state: Params) -> Float[Array, "m *out"]:
        require_state(state, self.params)
        return self.polynomial(state, self.problem.x)

    def penalty(self, state: Params) -> Scalar:
        """0: there is no weight decay."""
        require_state(state, self.params)
        return jnp.zeros((), jax.tree.leaves(state)[0].dtype)

    def error_norm(self, scaled: Params) -> Scalar:
        require_like("scaled", scaled, self.params, "initial_state()")
        return two_norm(scaled)

    def polynomial(self, state: Params, x: Inputs) -> Float[Array, "points *out"]:
        """f_d(w): the sum of the coefficients in ε of f(θ₀ + ε w)."""
        zeros = jax.tree.map(jnp.zeros_like, state)
        terms = self.coefficients(
            lambda params: self.apply.over(params, x),
            self.params,
            [state] + [zeros] * (self.degree - 1),
        )
        return sum(terms[1:], terms[0])
