"""The level-p truncated Neural Tangent Hierarchy."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._custom_types import Scalar
from .._internal.validation import require_instance, require_order
from .._kernels.infinite_width import InfiniteKernels, at_any_width
from .._kernels.kernels import Kernels, require_all_outputs, require_ntk
from .._network.base import TrainableNetwork, trainable
from .._problem.inputs import floating_dtype, require_like
from .._problem.problem import Problem
from .base import AbstractKernelDynamics, require_state, require_vector
from .linearization_error import require_same_network

Levels = tuple[Float[Array, "m ..."], ...]


class DenseHierarchy(AbstractKernelDynamics):
    """The truncated hierarchy in its tensor form, whose state contains the kernels.

    With g the output gradient at f̃ = K̃⁽¹⁾ on the training points (Huang & Yau, eqs. 15
    and 22; the first slot includes the test points):

        dK̃⁽ʳ⁾/dt = −K̃⁽ʳ⁺¹⁾ · g    for r = 1 … p−1,        dK̃⁽ᵖ⁾/dt = 0.

    The state is (K̃⁽¹⁾, …, K̃⁽ᵖ⁻¹⁾); its largest array has m·C·(n·C)^{p−2} entries. An
    evaluation costs about as many multiplications as K⁽ᵖ⁾ has entries.

    **Arguments:**

    - `kernels`: computed by [`nth.kernels`][] on the points of `problem`; the targets
        and the loss may differ from those of that call. Or
        [`nth.infinite.InfiniteKernels`][] on these points, with outputs 0 at
        initialization ([`nth.infinite.as_kernels`][] for others).
    - `problem`: targets and loss.
    - `order`: the level p, from 2 to `kernels.order`, which is the default.
    - `network`, `filter_spec`, `learning_rates`: those that `kernels` were formed with.
        At level 2 they are needed for `Solution.error_estimate`, which is NaN without
        them; at higher levels they are not used.

    **Raises:** `ValueError` if `order`, `problem` or `network` do not fit `kernels`.
    """

    problem: Problem
    levels: Levels
    network: TrainableNetwork | None
    label: str = eqx.field(static=True)
    method: ClassVar[str] = "dense"
    truncated: ClassVar[bool] = True

    def __init__(
        self,
        kernels: Kernels | InfiniteKernels,
        problem: Problem,
        *,
        order: int | None = None,
        network: Callable[..., Any] | None = None,
        filter_spec: PyTree = eqx.is_inexact_array,
        learning_rates: PyTree = None,
    ):
        require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
        kernels = at_any_width(kernels, problem)
        require_instance("kernels", kernels, Kernels, "nth.kernels(...)")
        require_ntk(kernels)
        require_all_outputs(kernels, "a solve")
        order = require_order("order", kernels.order if order is None else order)
        if order > kernels.order:
            raise ValueError(
                f"order must be at most {kernels.order}, the order of kernels; got "
                f"{order}. Form them again with a higher order."
            )
        _require_fit(kernels, problem)
        self.problem = problem.matched_to(jax.eval_shape(lambda f: f[0], kernels[1]))
        self.levels = kernels.tensors[:order]
        self.label = f"level-{order} hierarchy"
        self.network = None
        if network is not None and order == 2:
            self.network = trainable(network, problem, filter_spec, learning_rates)
            if self.network is not network:  # not the one that formed the kernels
                require_same_network(self.network, kernels[1])

    def initial_state(self) -> Levels:
        return self.levels[:-1]

    def vector_field(self, t: Scalar, state: Levels, args: Any) -> Levels:
        require_state(state, self.levels[:-1])
        g = self.output_gradient(state[0])
        return tuple(-_contract(k, g) for k in (*state[1:], self.levels[-1]))

    def outputs(self, state: Levels) -> Float[Array, "m *out"]:
        require_state(state, self.levels[:-1])
        return state[0]

    def ntk(self, state: Levels) -> Float[Array, "m ..."]:
        require_state(state, self.levels[:-1])
        return (*state, self.levels[-1])[1]

    def ntk_product(
        self, state: Levels, vector: Float[Array, "n *out"]
    ) -> Float[Array, "m *out"]:
        output = jax.eval_shape(lambda f: f[0], self.levels[0])
        require_vector(vector, self.problem.n_train, output)
        return _contract(self.ntk(state), vector)

    def penalty(self, state: Levels) -> Scalar:
        """0: kernels are formed at θ₀, which a weight decay would change."""
        require_state(state, self.levels[:-1])
        return jnp.zeros((), state[0].dtype)

    def error_norm(self, scaled: Levels) -> Scalar:
        require_like("scaled", scaled, self.levels[:-1], "initial_state()")
        # The maximum over r: in a single mean the many entries of K̃⁽ʳ⁾ would dominate.
        return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(k**2)) for k in scaled]))


def _contract(kernel: Float[Array, "..."], g: Float[Array, "n *out"]) -> Array:
    """K · g: the last slot of K summed against g."""
    return jnp.tensordot(kernel, g, axes=g.ndim)


def _require_fit(kernels: Kernels, problem: Problem) -> None:
    """Raise `ValueError` unless `kernels` are those of all points of `problem`."""
    if not kernels.complete:
        raise ValueError(
            "kernels were formed with rows=..., and a solve needs all points in "
            "the first slot: form them again without rows."
        )
    ntk = kernels[2].shape
    points = (problem.n_train + problem.n_test, problem.n_train)
    if (ntk[0], ntk[1 + len(kernels.out_shape)]) != points:
        raise ValueError(
            f"kernels have shape {ntk} for K(2), and problem has m = {points[0]} "
            f"points, n = {points[1]} for training: form them on its points."
        )
    x, dtype = floating_dtype(problem.x_train), kernels[1].dtype
    if x is not None and x != dtype:
        raise ValueError(
            f"kernels have dtype {dtype} and problem has {x}: cast one of them."
        )
