"""The choice of a solver: `solver="auto"`."""

import math
from typing import Literal, NamedTuple, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._dynamics.base import AbstractDynamics
from .._dynamics.dense import DenseHierarchy
from .._dynamics.matrix_free import MatrixFreeHierarchy
from .._dynamics.parameter_dynamics import AbstractDescent
from .._dynamics.stiffness import fastest_rate
from .._dynamics.taylorized import TaylorizedFlow
from .._internal.eigenvalues import is_symmetric
from .._internal.validation import all_finite, is_traced
from .._network.dense_layers import as_layers
from .._network.smoothness import has_kinks, has_primitives_with_kinks
from .._problem.averaged_loss import AveragedLoss
from .._problem.inputs import take
from .._problem.losses import (
    LogisticLoss,
    SoftmaxCrossEntropy,
    SquaredError,
)
from .solver_costs import (
    MOST_SLOTS,
    NOT_STIFF,
    READING,
    explicit_evaluations,
    implicit_cost,
    is_linear,
    low_rank_evaluations,
)
from .solvers.chebyshev import ROCK4
from .solvers.exponential import DenseExponential
from .solvers.low_rank_rosenbrock import LowRankRosenbrock
from .solvers.rosenbrock import DenseRosenbrock

SolverOption: TypeAlias = diffrax.AbstractSolver | Literal["auto"]

# Of networks with kinks, Tsit5 follows more: the error estimate of ROCK4 spans two
# steps, and does not tell where a kink is. Beyond, Tsit5 would fail.
_NOT_STIFF_WITH_KINKS = 2e5

_SMOOTH_LOSSES = (SquaredError, SoftmaxCrossEntropy, LogisticLoss)


class Choice(NamedTuple):
    """How a solve is integrated."""

    dynamics: AbstractDynamics
    """With the loss averaged where it has kinks."""

    solver: diffrax.AbstractSolver
    rate: float | None
    """The estimate of ρ, if it was needed."""

    averaged: bool
    """Whether the loss was averaged."""


def choose(
    dynamics: AbstractDynamics,
    ts: Float[Array, " T"],
    solver: SolverOption,
    adaptive: bool,
) -> Choice:
    """The solver for `dynamics` up to the last of `ts`.

    - Fixed steps, values that are traced, or dynamics without a kernel: Tsit5.
    - A loss with kinks, averaged over a small interval: `DenseRosenbrock` for a dense
      hierarchy, `LowRankRosenbrock` for others of at most 1,024 slots, else `ROCK4`.
    - ρT below 100, with ρ the fastest rate, or below 200,000 for networks with kinks,
      such as ReLU: Tsit5.
    - Else the cheapest by multiplications: for a dense hierarchy `DenseExponential`
      (orders above 2, or the squared error), `DenseRosenbrock` (other losses) or
      `ROCK4`; for gradient flow and the matrix-free hierarchy `LowRankRosenbrock`, of
      at most 1,024 slots, or `ROCK4`; for all others `ROCK4`.
    """
    if not isinstance(solver, str):
        return Choice(dynamics, solver, None, averaged=False)
    tsit5 = diffrax.Tsit5()
    if not adaptive or is_traced(dynamics, ts, jnp.zeros(())):
        return Choice(dynamics, tsit5, None, averaged=False)
    if loss_has_kinks(dynamics) and _starts_finite(dynamics):
        loss = AveragedLoss(dynamics.problem.loss)
        dynamics = eqx.tree_at(lambda d: d.problem.loss, dynamics, loss)
        return Choice(dynamics, _for_jumps(dynamics), None, averaged=True)
    estimate = fastest_rate(dynamics)
    if estimate is None:
        return Choice(dynamics, tsit5, None, averaged=False)
    rate = float(estimate)
    stiffness = rate * float(ts[-1])
    explicit = not stiffness > NOT_STIFF  # also where the estimate is NaN
    if not explicit and stiffness <= _NOT_STIFF_WITH_KINKS:
        explicit = network_has_kinks(dynamics)
    if explicit:
        return Choice(dynamics, tsit5, rate, averaged=False)
    if isinstance(dynamics, DenseHierarchy):
        stiff = _for_tensors(dynamics, stiffness)
    elif isinstance(dynamics, AbstractDescent):
        stiff = _for_parameters(dynamics, stiffness)
    else:
        stiff = ROCK4()
    return Choice(dynamics, stiff, rate, averaged=False)


def _for_jumps(dynamics: AbstractDynamics) -> diffrax.AbstractAdaptiveSolver:
    """For an averaged loss, whose gradient is steep: an implicit solver, if its linear
    equations are few."""
    if isinstance(dynamics, DenseHierarchy):
        return DenseRosenbrock(dynamics)
    of_parameters = isinstance(dynamics, AbstractDescent | TaylorizedFlow)
    if of_parameters and _outputs_on_train(dynamics).size <= MOST_SLOTS:
        return LowRankRosenbrock(dynamics)
    return ROCK4()


def _for_parameters(
    dynamics: AbstractDescent, stiffness: float
) -> diffrax.AbstractAdaptiveSolver:
    """The cheaper solver for a stiff state made of parameters, by evaluations."""
    if network_has_kinks(dynamics):
        return ROCK4()
    outputs = _outputs_on_train(dynamics)
    x = take(dynamics.problem.x_train, 0)
    layered = as_layers(dynamics.apply, dynamics.params, x) is not None
    implicit = low_rank_evaluations(outputs.size, outputs.dtype, layered)
    level = isinstance(dynamics, MatrixFreeHierarchy)
    linear = level and is_linear(dynamics.order, dynamics.problem.loss)
    explicit = explicit_evaluations(stiffness, linear=linear)
    return LowRankRosenbrock(dynamics) if implicit < explicit else ROCK4()


def _for_tensors(
    dynamics: DenseHierarchy, stiffness: float
) -> diffrax.AbstractAdaptiveSolver:
    """The cheapest solver for a stiff dense hierarchy."""
    problem, order = dynamics.problem, len(dynamics.levels)
    kernel = dynamics.levels[1]
    slots = problem.n_train * math.prod(dynamics.levels[0].shape[1:])
    square = kernel[: problem.n_train].reshape(slots, slots)
    if not is_symmetric(square):  # of no network: the eigenvalues may be complex
        return diffrax.Tsit5()
    size = dynamics.levels[-1].size
    explicit = explicit_evaluations(stiffness) * READING * size
    if implicit_cost(size, slots, order, problem.loss) > explicit:
        return ROCK4()
    if order > 2 or isinstance(problem.loss, SquaredError):
        return DenseExponential(dynamics)
    return DenseRosenbrock(dynamics)


def loss_has_kinks(dynamics: AbstractDynamics) -> bool:
    """Whether the derivative of the loss may jump, by the primitives it is made of."""
    problem = dynamics.problem
    if isinstance(problem.loss, _SMOOTH_LOSSES):
        return False
    outputs = jax.eval_shape(lambda: _outputs(dynamics)[0])
    target = jax.ShapeDtypeStruct(problem.y_train.shape[1:], problem.y_train.dtype)
    return has_primitives_with_kinks(problem.loss.pointwise, outputs, target)


def _starts_finite(dynamics: AbstractDynamics) -> bool:
    """Whether ∂L/∂f is finite at t = 0: an average would hide that it is not."""
    return bool(all_finite(dynamics.output_gradient(_outputs(dynamics))))


def _outputs_on_train(dynamics: AbstractDynamics) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: _outputs(dynamics)[: dynamics.problem.n_train])


def _outputs(dynamics: AbstractDynamics) -> Float[Array, "m *out"]:
    return dynamics.outputs(dynamics.initial_state())


def network_has_kinks(dynamics: AbstractDynamics) -> bool:
    """Whether the vector field may have kinks in the parameters."""
    if not isinstance(dynamics, AbstractDescent | TaylorizedFlow):
        return False
    x = take(dynamics.problem.x_train, 0)
    return has_kinks(dynamics.apply, dynamics.params, x)
