"""A Rosenbrock method for stiff training of parameters, by linear solves in output
space."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._custom_types import Scalar, State
from ..._dynamics.base import AbstractDynamics, AbstractKernelDynamics
from ..._dynamics.parameter_dynamics import AbstractDescent
from ..._problem.inputs import take
from ..._problem.losses import AbstractLoss
from . import ros34pw2
from .abstract_rosenbrock import (
    AbstractRosenbrock,
    RosenbrockCoefficients,
    weighted_sum,
)
from .output_space import output_hessian, times_blocks


class LowRankRosenbrock(AbstractRosenbrock):
    """ROS34PW2 with a Jacobian of rank n·C: for losses with kinks, and long times.

    For [`nth.GradientFlow`][], [`nth.MatrixFreeHierarchy`][] and
    [`nth.TaylorizedFlow`][], whose vector field is −B(y)·g with g = ∂L/∂f, and B linear
    in g. The part of its Jacobian that is stiff is −B H C, with H = ∂²L/∂f² and C the
    derivative of the outputs on the training points. ROS34PW2 is a W-method: it has
    order 3 with any approximate Jacobian, and is L-stable with an exact one (Rang &
    Angermann 2005). Here that is −B H C at the start of each step.

    A step costs 4 evaluations of the vector field, 4 products with C and B, the kernel
    C B of the training points, and one LU factorization of n·C equations. Its size is
    not limited by the eigenvalues of the kernel, however steep the gradient of the
    loss.

    **Arguments:**

    - `dynamics`: the dynamics that is solved, the same as in the `terms`.
    """

    dynamics: AbstractDynamics
    coefficients: ClassVar[RosenbrockCoefficients] = ros34pw2.COEFFICIENTS
    evaluations_per_step: ClassVar[int] = ros34pw2.STAGES

    def stages(
        self, terms: Any, t0: Scalar, y0: State, h: Scalar, args: Any
    ) -> list[State]:
        known = self.coefficients
        newton = LowRankNewton(self.dynamics, y0, known.gamma * h)
        zero = jax.tree.map(jnp.zeros_like, y0)
        u: list[State] = []
        for row, coupling in zip(known.a, known.c, strict=True):
            rate = terms.vf(t0, weighted_sum(row, u, y0), args)
            coupled = weighted_sum(coupling, u, zero)
            right = jax.tree.map(lambda c, k: known.gamma * (h * k + c), coupled, rate)
            u.append(newton.solve(right))
        return u


class LowRankNewton(eqx.Module):
    """I + a B H C at a state, factorized.

    By the Woodbury identity (I + a B H C)⁻¹ r = r − a B w, with w the solution of the
    n·C equations (I + a H C B) w = H C r.
    """

    dynamics: AbstractDynamics
    """With no test points, and with g for its targets: see `_driven`."""

    state: State
    a: Scalar
    hessian: Float[Array, "n C C"]
    """The blocks of H."""

    factors: tuple[Array, Array]
    """The LU factors of I + a H C B."""

    def __init__(self, dynamics: AbstractDynamics, state: State, a: Scalar):
        self.dynamics, self.state, self.a = _driven(dynamics), state, a
        self.hessian = output_hessian(dynamics, self.dynamics.outputs(state))
        kernel = self._kernel()
        one = jnp.eye(len(kernel), dtype=kernel.dtype)
        product = times_blocks(kernel.T, self.hessian.mT).T
        self.factors = jax.scipy.linalg.lu_factor(one + a * product)

    def solve(self, r: State) -> State:
        """δ with (I + a B H C) δ = r."""
        w = times_blocks(self._push(r)[None], self.hessian.mT)[0]
        w = jax.scipy.linalg.lu_solve(self.factors, w)
        return jax.tree.map(lambda r, k: r - self.a * k, r, self._response(w))

    def _push(self, r: State) -> Float[Array, " slots"]:
        """C·r. Forward mode, since it holds no more than a block of points."""
        return jax.jvp(self.dynamics.outputs, (self.state,), (r,))[1].ravel()

    def _response(self, g: Float[Array, " slots"]) -> State:
        """B·g."""
        problem = self.dynamics.problem
        slopes = g.reshape(problem.y_train.shape) * problem.n_train
        driven = eqx.tree_at(lambda d: d.problem.y_train, self.dynamics, slopes)
        rate = driven.vector_field(jnp.zeros_like(self.a), self.state, None)
        return jax.tree.map(jnp.negative, rate)

    def _kernel(self) -> Float[Array, "slots slots"]:
        """C B."""
        slots = self.dynamics.problem.y_train.size
        if isinstance(self.dynamics, AbstractKernelDynamics):
            return self.dynamics.ntk(self.state).reshape(slots, slots)

        def column(unit: Float[Array, " slots"]) -> Float[Array, " slots"]:
            return self._push(self._response(unit))

        dtype = self.dynamics.problem.y_train.dtype
        return jax.lax.map(column, jnp.eye(slots, dtype=dtype), batch_size=16).T


class _Linear(AbstractLoss):
    """Σ_i g_i f_i with g the targets, so that ∂ℓ/∂f = g at all outputs."""

    def pointwise(self, output, target):
        return jnp.sum(output * target)

    def check_targets(self, targets, dtype):
        return targets

    def check_outputs(self, targets, output):
        return targets


def _driven(dynamics: AbstractDynamics) -> AbstractDynamics:
    """`dynamics` on the training points alone, whose targets are n·g.

    Its vector field at targets n·g is −B·g. Weight decay is left out: it is not stiff.
    """
    like = jax.eval_shape(lambda: dynamics.outputs(dynamics.initial_state()))
    n = dynamics.problem.n_train
    slopes = jnp.zeros((n, *like.shape[1:]), like.dtype)
    driven = eqx.tree_at(
        lambda d: (d.problem.x_test, d.problem.loss, d.problem.y_train),
        dynamics,
        (take(dynamics.problem.x_test, slice(0)), _Linear(), slopes),
    )
    if isinstance(driven, AbstractDescent) and driven.weight_decay is not None:
        none = jnp.zeros_like(driven.weight_decay)
        driven = eqx.tree_at(lambda d: d.weight_decay, driven, none)
    return driven
