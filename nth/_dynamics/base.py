"""The interface of dynamics: initial state, vector field and outputs."""

import abc
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Params, Scalar, State
from .._internal.validation import as_array
from .._problem.inputs import require_like
from .._problem.problem import Problem

if TYPE_CHECKING:
    # A type checker would take Equinox's alias for an instance variable.
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractDynamics(eqx.Module):
    """A model of training in continuous time, for [`nth.integrate`][].

    A state is any pytree of arrays of one floating dtype.
    """

    problem: eqx.AbstractVar[Problem]
    """The points, targets and loss. The targets are checked against the outputs."""

    label: eqx.AbstractVar[str]
    """The name used in messages and legends."""

    method: AbstractClassVar[str]
    """The method of prediction, for `Solution.stats`."""

    truncated: AbstractClassVar[bool]
    """Whether the model holds inside a window only, whose end is `valid_until`."""

    @abc.abstractmethod
    def initial_state(self) -> State:
        """The state at t = 0."""

    @abc.abstractmethod
    def vector_field(self, t: Scalar, state: State, args: Any) -> State:
        """d(state)/dt; `args` is unused, but diffrax passes it."""

    @abc.abstractmethod
    def outputs(self, state: State) -> Float[Array, "m *out"]:
        """The predicted outputs on all m points, training points first."""

    @abc.abstractmethod
    def error_norm(self, scaled: State) -> Scalar:
        """The norm of a step's error estimate, with each entry over its tolerance."""

    @abc.abstractmethod
    def penalty(self, state: State) -> Scalar:
        """The term added to L in training: λ/2 ‖θ‖² for a weight decay λ, else 0."""

    def loss(self, state: State) -> Scalar:
        """The predicted training loss L."""
        train = self.outputs(state)[: self.problem.n_train]
        return self.problem.loss(train, self.problem.y_train)

    def output_gradient(
        self, outputs: Float[Array, "m *out"]
    ) -> Float[Array, "n *out"]:
        """g = ∂L/∂f on the training points, from the outputs on all points."""
        points = self.problem.n_train + self.problem.n_test
        outputs = as_array("outputs", outputs)
        if outputs.shape[:1] != (points,):
            raise ValueError(
                f"outputs must have one row for each of the {points} points of "
                f"problem, like outputs(state); got shape {outputs.shape}."
            )
        train = outputs[: self.problem.n_train]
        return self.problem.loss.gradient(train, self.problem.y_train)

    def output_rates(
        self, t: Scalar, state: State
    ) -> tuple[Float[Array, "n *out"], Float[Array, "n *out"], Scalar]:
        """g and df̃/dt on the training points, whose inner product is dL/dt, and the
        time derivative of the penalty.
        """
        rate = self.vector_field(t, state, None)
        outputs, velocity = jax.jvp(self.outputs, (state,), (rate,))
        penalty = jax.jvp(self.penalty, (state,), (rate,))[1]
        g = self.output_gradient(outputs)
        return g, velocity[: self.problem.n_train], penalty


class AbstractKernelDynamics(AbstractDynamics):
    """Dynamics with a kernel, df̃/dt = −K̃⁽²⁾ · g, that is a function of the state.

    The contribution of weight decay to df̃/dt is not part of the kernel.
    """

    @abc.abstractmethod
    def ntk(self, state: State) -> Float[Array, "m ..."]:
        """K̃⁽²⁾ at a state, of shape `(m, *out, n, *out)`."""

    @abc.abstractmethod
    def ntk_product(
        self, state: State, vector: Float[Array, "n *out"]
    ) -> Float[Array, "m *out"]:
        """K̃⁽²⁾ · v at a state, in time linear in n if the state holds no kernel."""


def require_state(state: State, like: State) -> None:
    """Raise `ValueError` unless `state` has the layout of `like`."""
    require_like("state", state, like, "the initial_state() of this dynamics")


def require_vector(vector: Any, n_train: int, output: Any) -> None:
    """Raise `ValueError` unless `vector` has one entry for each training slot.

    `output` has the shape and dtype of one output.
    """
    like = jax.ShapeDtypeStruct((n_train, *output.shape), output.dtype)
    require_like("vector", vector, like, "the outputs on the training points")


def two_norm(scaled: Params) -> Scalar:
    """The error norm of parameters: the square root of the sum of their squares.

    The sum, not the mean: |δf| ≤ ‖∇f‖·‖δθ‖ for any number of parameters.
    """
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(scaled)))
