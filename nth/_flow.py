"""The truth: gradient flow of the network itself."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._dynamics import AbstractDynamics
from ._network import OutputFunction, parametrize
from ._problem import Problem
from ._types import Params, Scalar


class GradientFlow(AbstractDynamics):
    """The network really trained, in continuous time (Huang & Yau, eq. 3):

        dθ/dt = −∇_θ L(θ) = −J(θ)ᵀ g.

    **Arguments:** `network`, `problem` and `filter_spec` as for [`nth.kernels`][].
    """

    problem: Problem
    apply: OutputFunction
    params: Params
    label: str = eqx.field(static=True)
    method: ClassVar[str] = "gradient flow"
    truncated: ClassVar[bool] = False

    def __init__(
        self,
        network: Callable[..., Any],
        problem: Problem,
        *,
        filter_spec: PyTree = eqx.is_inexact_array,
    ):
        self.apply, self.params, self.problem = parametrize(
            network, problem, filter_spec
        )
        self.label = "network"

    def initial_state(self) -> Params:
        return self.params

    def vector_field(self, t: Scalar, state: Params, args: Any) -> Params:
        def loss(params: Params) -> Scalar:
            outputs = self.apply.over(params, self.problem.x_train)
            return self.problem.loss(outputs, self.problem.y_train)

        return jax.tree.map(jnp.negative, jax.grad(loss)(state))

    def outputs(self, state: Params) -> Float[Array, "m *out"]:
        return self.apply.over(state, self.problem.x)

    def error_norm(self, scaled: Params) -> Scalar:
        # The sum and not the mean: |δf| ≤ ‖∇f‖·‖δθ‖, however many parameters there are.
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(scaled)))
