"""Training dynamics of parameters or of their series coefficients: the part that
continuous and discrete training share."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._custom_types import Inputs, Params, Scalar, State
from .._network.base import OutputFunction
from .base import AbstractKernelDynamics


class AbstractDescent(AbstractKernelDynamics):
    """Training by d(state)/dt = −M (G + λ·state), with G the gradient of the loss.

    The two public subclasses are [`nth.GradientFlow`][], whose state is θ, and
    [`nth.MatrixFreeHierarchy`][]. Gradient descent evaluates the same G on the
    points of a batch.
    """

    apply: eqx.AbstractVar[OutputFunction]
    params: eqx.AbstractVar[Params]
    rates: eqx.AbstractVar[Params | None]
    weight_decay: eqx.AbstractVar[Scalar | None]

    @abc.abstractmethod
    def gradient(self, state: State, x: Inputs, y: Shaped[Array, "b ..."]) -> State:
        """G of the mean loss over the points `x`, `y`."""

    @abc.abstractmethod
    def scaled(self, direction: State) -> State:
        """M times `direction`."""

    @abc.abstractmethod
    def parameters(self, state: State) -> Params:
        """The parameters of a state."""

    @abc.abstractmethod
    def over(self, params: Params, x: Inputs) -> Float[Array, "points *out"]:
        """The outputs of the network at `params`, on any number of points."""

    def slope(self, state: State, x: Inputs, y: Shaped[Array, "b ..."]) -> State:
        """G + λ·state on the points `x`, `y`."""
        gradient = self.gradient(state, x, y)
        if self.weight_decay is None:
            return gradient
        decay = self.weight_decay
        return jax.tree.map(lambda g, s: g + decay * s, gradient, state)

    def vector_field(self, t: Scalar, state: State, args: Any) -> State:
        self.penalty(state)  # refuses a state with another weight decay; not compiled
        slope = self.slope(state, self.problem.x_train, self.problem.y_train)
        return jax.tree.map(jnp.negative, self.scaled(slope))
