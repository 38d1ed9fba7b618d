"""Level p = 2 in closed form, for the squared error."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._custom_types import Params
from .._dynamics.dense import DenseHierarchy
from .._internal.eigenvalues import require_nonnegative, require_symmetric
from .._internal.precision import full_precision
from .._internal.validation import require_instance, require_times
from .._kernels.infinite_width import InfiniteKernels
from .._kernels.kernels import Kernels, kernels as form_kernels
from .._network.base import TrainableNetwork, trainable
from .._network.finiteness import checked_finite
from .._network.learning_rates import by_rates
from .._network.memory import require_memory, tree_bytes
from .._problem.losses import SquaredError
from .._problem.problem import Problem
from .._solution.prediction import AbstractPrediction, summary
from .decay_integrals import eigendecomposition, relax, relax_with

Times = ArrayLike | Sequence[float]

FORM_THEM = "Form them by nth.kernels on the points of problem."

NOT_FINITE = (
    "form them by nth.kernels, at points and parameters where the network is finite "
    "and differentiable."
)


class Trajectory(AbstractPrediction):
    """Outputs over time in closed form: see [`nth.closed_form`][]."""

    ts: Float[Array, " T"]
    """The requested times; the last may be ∞."""

    train: Float[Array, "T n *out"]
    """Outputs on the training points."""

    test: Float[Array, "T q *out"]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: Float[Array, " T"]
    """The training loss L of those outputs."""

    def __repr__(self) -> str:
        return summary(self)


@full_precision
def closed_form(
    kernels: Kernels | InfiniteKernels, problem: Problem, ts: Times
) -> Trajectory:
    """Level p = 2 in closed form at any times, for the squared error.

    With K the NTK on the training points and k its rows at a point x, both at
    initialization, the outputs are

        f(t) = y + e^{−K t/n} (f₀ − y),
        f(t, x) = f₀(x) − k K⁻¹ (1 − e^{−K t/n}) (f₀ − y)

    (Lee et al. 2019, eqs. 9 to 11, with ηt there equal to t/n here, since the loss is a
    mean over the points). K⁻¹(1 − e^{−K t/n}) is computed as ∫₀^{t/n} e^{−Ks} ds, so K
    may be singular: components along eigenvectors of eigenvalue zero do not change.

    **Arguments:**

    - `kernels`: computed by [`nth.kernels`][] on the points of `problem`, of any order;
        or [`nth.infinite.InfiniteKernels`][] on them, with outputs 0 at initialization.
    - `problem`: targets, with the loss [`nth.SquaredError`][].
    - `ts`: times, shape `(T,)`, increasing and nonnegative; the last may be `jnp.inf`.

    **Returns:** [`nth.Trajectory`][].

    Derivatives are exact also where eigenvalues of K coincide; at t = ∞ they assume a
    nonsingular kernel.

    **Raises:** `ValueError` for another loss, invalid times, or kernels that do not
    match `problem` or contain NaN.
    """
    level = DenseHierarchy(kernels, problem, order=2)
    require_squared_error(problem, "closed_form")
    finite = checked_finite("kernels", level.levels, NOT_FINITE)
    level = eqx.tree_at(lambda level: level.levels, level, finite)
    times = require_times(ts, finite[0].dtype, with_infinity=True)
    require_symmetric_ntk(finite[1], level.problem)
    outputs, eigenvalues = _outputs(level, times)
    require_nonnegative("kernels", eigenvalues, FORM_THEM)
    return as_trajectory(outputs, level.problem, times)


@eqx.filter_jit
def _outputs(
    level: DenseHierarchy, ts: Float[Array, " T"]
) -> tuple[Float[Array, "T m *out"], Float[Array, " slots"]]:
    """The outputs, and the eigenvalues of K on the training points."""
    outputs, kernel = level.levels
    start, rows, square, residual = as_matrices(outputs, kernel, level.problem)
    times = ts / level.problem.n_train
    eigen = eigendecomposition(square)
    decayed, integral = (
        part[..., 0] for part in relax_with(square, eigen, times, residual[:, None])
    )
    # e^{−Kt/n} itself on the training points avoids cancellation.
    train = start[None, : len(residual)] - residual[None] + decayed
    test = start[None, len(residual) :] - integral @ rows[len(residual) :].T
    path = jnp.concatenate([train, test], axis=1).reshape(-1, *outputs.shape)
    return path, eigen.values


def as_matrices(
    outputs: Float[Array, "m *out"],
    kernel: Float[Array, "m ..."],
    problem: Problem,
) -> tuple[Array, Array, Array, Array]:
    """With flattened slots: f₀ (m·C), K (m·C, n·C), its training rows, f₀ − y (n·C)."""
    size = problem.y_train.size
    start = outputs.reshape(-1)
    rows = kernel.reshape(-1, size)
    residual = start[:size] - problem.y_train.reshape(-1)
    square = (rows[:size] + rows[:size].T) / 2
    return start, rows, square, residual


def require_symmetric_ntk(kernel: Float[Array, "m ..."], problem: Problem) -> None:
    """Raise `ValueError` unless K on the training points is symmetric."""
    size = problem.y_train.size
    rows = kernel[: problem.n_train].reshape(size, size)
    require_symmetric("kernels", rows, FORM_THEM)


def as_trajectory(
    outputs: Float[Array, "T m *out"], problem: Problem, ts: Float[Array, " T"]
) -> Trajectory:
    """A [`nth.Trajectory`][] from the outputs on all points."""
    train, test = jnp.split(outputs, [problem.n_train], axis=1)
    loss = jax.vmap(problem.loss, in_axes=(0, None))(train, problem.y_train)
    return Trajectory(ts, train, test, loss)


def require_squared_error(
    problem: Problem,
    function: str,
    cure: str = "For other losses use nth.solve(network, problem, ts, order=...).",
) -> None:
    """Raise `ValueError` unless `problem` has the squared error."""
    require_instance("problem", problem, Problem, "nth.Problem(x_train, y_train)")
    if not isinstance(problem.loss, SquaredError):
        raise ValueError(
            f"problem has the loss {problem.loss!r}: {function} is for "
            f"nth.SquaredError(), whose output gradient is linear. {cure}"
        )


@full_precision
def displacement(
    network: Callable[..., Any],
    problem: Problem,
    ts: Times,
    *,
    filter_spec: PyTree = eqx.is_inexact_array,
    learning_rates: PyTree = None,
) -> Params:
    """The displacement of the parameters at level p = 2, for the squared error:

        θ(t) − θ₀ = −M Jᵀ K⁻¹ (1 − e^{−K t/n}) (f₀ − y),

    with J the Jacobian of the training outputs at θ₀, M the learning rates (1 by
    default) and K = J M Jᵀ (Lee et al. 2019, eq. 8). This is
    the solution of [`nth.TaylorizedFlow`][] of degree 1.

    **Arguments:** `network`, `problem`, `filter_spec` and `learning_rates` as for
    [`nth.kernels`][]; `ts` as for [`nth.closed_form`][].

    **Returns:** a pytree like `network`, with the times as the first axis of each
    trainable array, and `None` in place of frozen leaves.

    **Raises:** `ValueError` as [`nth.closed_form`][] and [`nth.kernels`][].
    """
    require_squared_error(problem, "displacement")
    train = Problem(problem.x_train, problem.y_train)
    trained = trainable(network, train, filter_spec, learning_rates)
    formed = form_kernels(trained, trained.problem, order=2)
    times = require_times(ts, formed[1].dtype, with_infinity=True)
    require_memory(
        "ts",
        f"the parameters at {len(times)} times",
        len(times) * (tree_bytes(trained.params) + tree_bytes(formed[1])),
        "Give fewer times.",
    )
    return _pulled_back(trained, formed.tensors, times)


@eqx.filter_jit
def _pulled_back(
    trained: TrainableNetwork, levels: tuple[Array, ...], ts: Float[Array, " T"]
) -> Params:
    outputs, kernel = levels
    train = trained.problem
    _, _, square, residual = as_matrices(outputs, kernel, train)
    integral = relax(square, ts / train.n_train, -residual[:, None])[1][..., 0]
    _, pull = jax.vjp(
        lambda params: trained.apply.over(params, train.x_train), trained.params
    )

    def moved(row: Float[Array, " slots"]) -> Params:
        return by_rates(trained.rates, pull(row.reshape(outputs.shape))[0])

    return jax.lax.map(moved, integral)
