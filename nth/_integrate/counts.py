"""Steps and evaluations of a solve."""

from typing import Any

import diffrax
import jax.numpy as jnp
from jaxtyping import Array

from .._dynamics.base import AbstractDynamics
from .solvers.abstract_rosenbrock import AbstractRosenbrock
from .solvers.chebyshev import ROCK4
from .solvers.exponential import DenseExponential


def counts(
    solver: diffrax.AbstractSolver,
    dynamics: AbstractDynamics,
    stats: dict[str, Any],
    solver_state: Any,
) -> dict[str, Array]:
    """The numbers in `Solution.stats`: `num_evaluations` if it can be known."""
    names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    numbers = {name: jnp.asarray(stats[name]) for name in names}
    steps = numbers["num_steps"]
    total = None
    if isinstance(solver, diffrax.AbstractERK):
        tableau = solver.tableau
        assert isinstance(tableau, diffrax.ButcherTableau)
        fsal = int(tableau.fsal)
        total = (tableau.num_stages - fsal) * steps + fsal * jnp.minimum(steps, 1)
    elif isinstance(solver, DenseExponential | AbstractRosenbrock):
        total = solver.evaluations_per_step * steps
    elif isinstance(solver, ROCK4):
        total = solver_state.evaluations
    if total is not None:
        if dynamics.truncated:  # the window is checked at the start and at each step
            total = total + steps + 1
        numbers["num_evaluations"] = total
    return numbers
