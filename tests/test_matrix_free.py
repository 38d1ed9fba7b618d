"""The matrix-free hierarchy: its equations by brute force, the tensor form, iterated
integrals, and the trained network."""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem
from jax.flatten_util import ravel_pytree
from vector_fields import assert_trees_close, flow_to, random_state, rates

import nth
from nth._dynamics.taylor_coefficients import by_jet, by_jvp

TIGHT = diffrax.PIDController(rtol=1e-9, atol=1e-11)
KEY = jax.random.key(0)


class Scanned(eqx.Module):
    """Layers by lax.scan."""

    w: jax.Array
    v: jax.Array

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(w @ h), None), x, self.w)
        return jnp.vdot(self.v, h)


def convolution():
    return eqx.nn.Sequential(
        [
            eqx.nn.Lambda(lambda x: x[None]),
            eqx.nn.Conv1d(1, 2, 2, key=KEY),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(6, "scalar", key=KEY),
        ]
    )


def from_apply():
    draw = np.random.default_rng(0).normal
    params = {"w": draw(size=(3, 4)), "a": draw(size=3)}
    return nth.from_apply(lambda p, x: jnp.tanh(p["w"] @ x) @ p["a"], params)


def only(network, where):
    """A filter_spec with which one leaf is trained and the others are frozen."""
    return eqx.tree_at(where, jax.tree.map(lambda _: False, network), True)


# ---------------------------------------------------------------- the equations


def test_initial_rates_are_those_of_gradient_descent():
    """At t = 0, du_1/dt = −∇L and du_k/dt = 0 for k > 1."""
    problem = make_problem(3, 1, outputs=2, loss=nth.SoftmaxCrossEntropy())
    network = make_network(4, 1, outputs=2)
    hierarchy = nth.MatrixFreeHierarchy(network, problem, order=4)
    start = hierarchy.initial_state()
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(start))
    first, *rest = rates(hierarchy, start).steps

    def loss(network):
        log = jax.nn.log_softmax(jax.vmap(network)(problem.x_train))
        return -sum(log[i, y] for i, y in enumerate(problem.y_train)) / 3

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(network)
    downhill = jax.tree.map(jnp.negative, gradient)
    assert_trees_close(first, downhill, 1e-14)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(rest))


@pytest.mark.parametrize("outputs", [None, 2])
def test_vector_field_is_its_equation(outputs):
    """du_k/dt = −[J(θ_ε)ᵀ g]_{k−1}, f̃ = Σ_k [f(θ_ε)]_k, each from explicit J(θ_ε)."""
    order, n = 4, 3
    problem = make_problem(n, 1, 2, outputs=outputs)
    network = make_network(3, 1, 2, outputs=outputs, use_bias=True)
    hierarchy = nth.MatrixFreeHierarchy(network, problem, order=order)
    state = random_state(hierarchy)
    theta, unravel = ravel_pytree(hierarchy.params)
    steps = [ravel_pytree(step)[0] for step in state.steps]

    def f(theta):
        return jax.vmap(eqx.combine(unravel(theta), network))(problem.x)

    def along(function):
        """Coefficients 0 … p − 1 of function(θ_ε), by repeated derivatives."""

        def at(eps):
            powers = zip(range(1, order), steps, strict=True)
            return function(theta + sum(eps**k * step for k, step in powers))

        coefficients, factorial = [], 1
        for k in range(order):
            factorial *= max(k, 1)
            coefficients.append(at(jnp.zeros(())) / factorial)
            at = jax.jacfwd(at)
        return coefficients

    def brute_force():
        outputs = sum(along(f), jnp.zeros_like(f(theta)))
        g = (outputs[:n] - problem.y_train) / n
        jacobians = along(lambda theta: jax.jacfwd(f)(theta)[:n])
        pulled = [jnp.tensordot(g, j, axes=g.ndim) for j in jacobians[: order - 1]]
        return outputs, [-rate for rate in pulled]

    outputs, expected = jax.jit(brute_force)()
    np.testing.assert_allclose(hierarchy.outputs(state), outputs, atol=1e-13)
    actual = [ravel_pytree(rate)[0] for rate in rates(hierarchy, state).steps]
    assert_trees_close(actual, expected, 1e-13)


# ---------------------------------------------------------------- the tensor form


def pseudo_huber(output, target):
    return jnp.sum(jnp.sqrt(1 + (output - target) ** 2) - 1)


LOSSES = {
    "squared": (None, nth.SquaredError()),
    "squared, two outputs": (2, nth.SquaredError()),
    "labels": (2, nth.SoftmaxCrossEntropy()),
    "logistic": (None, nth.LogisticLoss()),
    "any": (None, nth.CustomLoss(pseudo_huber)),
}


def assert_forms_agree(network, problem, order, t, **options: Any):
    """At level p and time t, where f̃ differs from f₀ and K⁽ᵖ⁾ is not 0."""
    formed = nth.kernels(network, problem, order=order, **options)
    free = nth.MatrixFreeHierarchy(network, problem, order=order, **options)
    dense = nth.DenseHierarchy(formed, problem)
    (actual, _), (expected, _) = flow_to(free, t), flow_to(dense, t)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-8)
    assert 1e-3 < np.max(np.abs(expected - formed[1])) < 10
    assert np.max(np.abs(formed[order])) > 1e-3


@pytest.mark.parametrize(
    ("case", "order"),
    [
        ("squared", 2),
        ("squared", 4),
        ("squared, two outputs", 3),
        ("labels", 4),
        ("logistic", 3),
        ("any", 3),
    ],
)
def test_equals_the_tensor_form(case, order):
    outputs, loss = LOSSES[case]
    problem = make_problem(3, 2, 2, outputs=outputs, loss=loss)
    network = make_network(3, 1, 2, outputs=outputs, sigma_w=1.5)
    assert_forms_agree(network, problem, order, 2.0)


KINDS: dict[str, tuple[Any, int, Any]] = {
    "tanh, to level 5": (make_network(2, 1, 4), 5, by_jet),
    "relu": (make_network(4, 1, 4, activation="relu", use_bias=True), 3, by_jvp),
    "convolution": (convolution(), 3, by_jet),
    "scan": (Scanned(jax.random.normal(KEY, (2, 4, 4)), jnp.ones(4)), 3, by_jvp),
    "attention, normalized, shared": (Shared(4, KEY), 3, by_jet),
    "from_apply": (from_apply(), 3, by_jet),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_tensor_form_on_any_network(kind):
    network, order, coefficients = KINDS[kind]
    problem = make_problem(2, 1, 4)
    assert (
        nth.MatrixFreeHierarchy(network, problem, order=order).coefficients
        is coefficients
    )
    assert_forms_agree(network, problem, order, 0.3)


def test_equals_the_tensor_form_with_frozen_parts():
    network = make_network(3, 2)
    spec = only(network, lambda net: net.weights[1])
    assert_forms_agree(network, make_problem(2, 1), 3, 1.0, filter_spec=spec)


def test_frozen_arrays_are_not_in_the_state():
    network = make_network(3, 2)
    spec = only(network, lambda net: net.weights[0])
    hierarchy = nth.MatrixFreeHierarchy(
        network, make_problem(), order=3, filter_spec=spec
    )
    for rate in rates(hierarchy, random_state(hierarchy)).steps:
        assert [leaf.shape for leaf in jax.tree.leaves(rate)] == [(3, 3)]


# ---------------------------------------------------------------- solves

# One shape of problem for all solves by diffrax, which take long to compile.
SMALL, NETWORK = make_problem(3, 1), make_network(4, 1)
TS = np.array([0.5, 2.0])


def solve(network, problem, ts=TS, method: Any = "matrix-free"):
    return nth.solve(
        network, problem, ts, order=3, method=method, stepsize_controller=TIGHT
    )


@pytest.fixture(scope="module")
def solved():
    return {name: solve(NETWORK, SMALL, TS, name) for name in ("dense", "matrix-free")}


def test_both_methods_agree_and_are_named_in_stats(solved):
    for name, solution in solved.items():
        assert solution.stats["method"] == name
    dense, free = solved["dense"], solved["matrix-free"]
    np.testing.assert_allclose(free.train, dense.train, atol=1e-7)
    np.testing.assert_allclose(free.test, dense.test, atol=1e-7)
    np.testing.assert_allclose(free.loss, dense.loss, atol=1e-7)
    assert np.max(np.abs(dense.test[1] - dense.test[0])) > 1e-2


def test_window_is_that_of_the_tensor_form(solved):
    """With large targets, for which level 3 soon leaves its window."""
    large_targets = nth.Problem(SMALL.x_train, 5 * SMALL.y_train, SMALL.x_test)
    solutions = {}
    for name in solved:
        with pytest.warns(nth.WindowWarning, match="level-3 hierarchy left its window"):
            solutions[name] = solve(NETWORK, large_targets, np.array([0.5, 7.0]), name)
    dense, free = solutions["dense"], solutions["matrix-free"]
    assert 0.5 < dense.valid_until < 7
    # Up to the size of the steps, which differ.
    np.testing.assert_allclose(free.valid_until, dense.valid_until, rtol=1e-3)
    np.testing.assert_allclose(free.test[0], dense.test[0], atol=1e-7)
    assert all(np.isinf(solution.valid_until) for solution in solved.values())


# ---------------------------------------------------------------- iterated integrals


class IteratedIntegrals(nth.AbstractDynamics):
    """dI_r/dt = g ⊗ I_{r−1}, I_0 = 1; f̃ = Σ_r (−1)^r K⁽ʳ⁺¹⁾·I_r, r = 0 … p − 1.

    By dK⁽ʳ⁾/dt = −K⁽ʳ⁺¹⁾·g the last slot of the kernel belongs to the earliest time, so
    the first slot of I_r is the latest g.
    """

    problem: nth.Problem
    formed: nth.Kernels
    label: str = "series of iterated integrals"
    method: ClassVar[str] = "iterated integrals"
    truncated: ClassVar[bool] = True

    def initial_state(self):
        slots = self.formed[2].shape[self.formed[1].ndim :]
        return tuple(jnp.zeros(slots * r) for r in range(1, self.formed.order))

    def vector_field(self, t, state, args):
        g = self.output_gradient(self.outputs(state))
        below = (jnp.ones(()), *state[:-1])
        return tuple(jnp.tensordot(g, integral, axes=0) for integral in below)

    def outputs(self, state):
        return read_out(self.formed, state)

    def penalty(self, state):
        return jnp.zeros(())

    def error_norm(self, scaled):
        return jnp.max(jnp.stack([jnp.max(jnp.abs(part)) for part in scaled]))


def read_out(formed, integrals):
    total = formed[1]
    for r, integral in enumerate(integrals, start=1):
        term = jnp.tensordot(formed[r + 1], integral, axes=integral.ndim)
        total = total + (-1) ** r * term
    return total


@pytest.mark.parametrize(
    ("outputs", "order"), [(None, 2), (None, 3), (2, 3), (None, 4)]
)
def test_outputs_are_linear_in_iterated_integrals(outputs, order):
    """A state of words in g, without θ: rows of the kernels predict new points."""
    loss = None if outputs is None else nth.SoftmaxCrossEntropy()
    problem = make_problem(3, 2, outputs=outputs, loss=loss)
    network = make_network(3, 1, outputs=outputs)
    formed = nth.kernels(network, problem, order=order)
    train_rows = nth.Kernels(tuple(kernel[:3] for kernel in formed))
    without = nth.Problem(problem.x_train, problem.y_train, loss=problem.loss)
    predicted, integrals = flow_to(IteratedIntegrals(without, formed=train_rows), 2.0)
    expected, _ = flow_to(nth.MatrixFreeHierarchy(network, problem, order=order), 2.0)
    np.testing.assert_allclose(predicted, expected[:3], atol=1e-8)
    predicted = read_out(formed, integrals)
    np.testing.assert_allclose(predicted, expected, atol=1e-8)
    if order == 4:  # K⁽⁴⁾ is not symmetric in slots 3 and 4: the order matters
        *lower, last = integrals
        permuted = read_out(formed, (*lower, jnp.swapaxes(last, 1, 2)))
        assert np.max(np.abs(permuted - predicted)) > 1e-6


# ------------------------------------------------------- the trained network


def test_errors_decrease_with_level():
    """At a fixed short time the error decreases with each level."""
    problem = make_problem(3, 1)
    network = make_network(4, 1, sigma_w=1.5)
    truth, _ = flow_to(nth.GradientFlow(network, problem), 0.2)
    errors = []
    for order in (2, 3, 4):
        actual, _ = flow_to(nth.MatrixFreeHierarchy(network, problem, order=order), 0.2)
        errors.append(np.max(np.abs(actual - truth)))
    ratios = np.divide(errors[1:], errors[:-1])
    assert np.all(ratios < 0.3), errors
    assert errors[-1] > 1e-9  # above the tolerance of the solver
