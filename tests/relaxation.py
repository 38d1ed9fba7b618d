"""Dynamics that compile quickly, and helpers of the tests of checkpoints."""

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from conftest import make_network, make_problem

import nth

TS = [0.0, 0.5, 1.0, 2.0, 3.0]


class Relaxation(nth.AbstractDynamics):
    """df/dt = −rate·g, which compiles quickly and counts its evaluations."""

    problem: nth.Problem
    label: str = "relaxation"
    rate: float = 1.0
    jump: float = 1.0  # factor of the rate after t = 0.7
    method: ClassVar[str] = "custom"
    truncated: ClassVar[bool] = False

    def initial_state(self):
        return jnp.zeros_like(self.problem.x[:, 0])

    def vector_field(self, t, state, args):
        jax.debug.callback(lambda: CALLS.append(None))
        g = self.output_gradient(state)
        rate = self.rate * jnp.where(t > 0.7, self.jump, 1.0)
        return -rate * jnp.concatenate([g, jnp.zeros_like(state[4:])])

    def outputs(self, state):
        return state

    def penalty(self, state):
        return jnp.zeros(())

    def error_norm(self, scaled):
        return jnp.max(jnp.abs(scaled))


CALLS: list[None] = []


def relaxation(**options: Any) -> Relaxation:
    return Relaxation(problem=make_problem(), **options)


def equal(actual: nth.Solution, expected: nth.Solution) -> None:
    """Bitwise equality, including statistics and state."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert actual.stats.keys() == expected.stats.keys()


def make(method: str) -> nth.AbstractDynamics:
    problem = make_problem()
    if method == "relaxation":
        return Relaxation(problem=problem)
    network = make_network(4, 1)
    if method == "dense":
        return nth.DenseHierarchy(nth.kernels(network, problem, order=3), problem)
    if method == "matrix-free":
        return nth.MatrixFreeHierarchy(network, problem, order=2)
    return nth.GradientFlow(network, problem)


def known_times(file: Path) -> int:
    """The number of times in a checkpoint, which must be complete or absent."""
    if not file.exists():
        return 0
    with np.load(file) as arrays:
        for name in arrays.files:
            assert arrays[name] is not None  # reads the array and verifies its checksum
        return int(arrays["leaf_0"])
