"""Solvers for stiff solves of the dense hierarchy: linear algebra, order, stability."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nth
from nth._integrate.solvers import rodas5p
from nth._integrate.solvers.dense_newton import NewtonMatrix, flatten, times, unflatten
from nth._integrate.solvers.exponential import DenseExponential
from nth._integrate.solvers.phi import double_integral, phi
from nth._integrate.solvers.rosenbrock import DenseRosenbrock

SOLVERS = (DenseRosenbrock, DenseExponential)
SQUARED = (nth.SquaredError(), jnp.array([1.0, -1.0, 0.5, -0.5]), "scalar")
SOFTMAX = (nth.SoftmaxCrossEntropy(), jnp.array([0, 1, 2, 1]), 3)
COUPLED = (
    nth.CustomLoss(lambda f, y: jnp.sum(jnp.cosh(f - y)) / 3 + 0.3 * f[0] * f[1]),
    jnp.full((4, 3), 0.5),
    3,
)


def hierarchy(case, order, dtype=jnp.float64, width=16, repeated=False):
    loss, y, out_size = case
    x = jax.random.normal(jax.random.key(1), (6, 3)).astype(dtype)
    x = x.at[1].set(x[0]) if repeated else x
    y = y.astype(dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y
    network = nth.MLP(
        3, width, 2, activation="tanh", out_size=out_size, key=jax.random.key(0)
    )
    network = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, network
    )
    problem = nth.Problem(x[:4], y, x[4:], loss=loss)
    kernels = nth.kernels(network, problem, order=order, progress=False)
    return nth.DenseHierarchy(kernels, problem)


def controller(dynamics, tolerance):
    return diffrax.PIDController(
        rtol=tolerance, atol=tolerance / 100, norm=dynamics.error_norm
    )


def outputs(dynamics, ts, solver, tolerance=None):
    steps = None if tolerance is None else controller(dynamics, tolerance)
    solution = nth.integrate(dynamics, ts, solver=solver, stepsize_controller=steps)
    return jnp.concatenate([solution.train, solution.test], axis=1)


def fixed(dynamics, solver, steps):
    """Outputs at t = 0.83 and at the end, t = 2, of steps of equal size."""
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(dynamics.vector_field),
        solver,
        0.0,
        2.0,
        jnp.asarray(2.0 / steps),  # a float would be compiled again for each value
        dynamics.initial_state(),
        saveat=diffrax.SaveAt(ts=jnp.array([0.83, 2.0])),
    )
    assert solved.ys is not None
    return solved.ys[0]


@pytest.mark.parametrize(
    ("case", "order"), [(SQUARED, 2), (SOFTMAX, 3), (COUPLED, 2), (COUPLED, 4)]
)
def test_structured_solve_is_that_of_the_jacobian(case, order):
    dynamics = hierarchy(case, order)
    state = dynamics.initial_state()
    y, unravel = ravel_pytree(state)

    def field(y):
        return ravel_pytree(dynamics.vector_field(jnp.zeros(()), unravel(y), None))[0]

    a = jnp.asarray(0.7)
    b = unravel(jax.random.normal(jax.random.key(2), y.shape))

    @eqx.filter_jit
    def both(dynamics, state, b):
        newton = NewtonMatrix(dynamics, state, a)
        v = jax.random.normal(jax.random.key(3), newton.slope.shape)
        flat = flatten(dynamics, b)
        solved = unflatten(state, newton.solve(flat, v))
        whole = (*flat[:-1], flat[-1] - a * times(newton.levels[-1], v))
        matrix = jnp.eye(y.size) - a * jax.jacfwd(field)(y)
        right = ravel_pytree(unflatten(state, whole))[0]
        return ravel_pytree(solved)[0], matrix, right

    solved, *equation = map(np.asarray, both(dynamics, state, b))
    expected = np.linalg.solve(*equation)
    assert np.max(np.abs(solved - expected)) < 1e-11 * np.max(np.abs(expected))


def test_structured_solve_at_order_5():
    dynamics = hierarchy(SQUARED, 5, width=8)
    state = dynamics.initial_state()
    y, unravel = ravel_pytree(state)

    def field(y):
        return ravel_pytree(dynamics.vector_field(jnp.zeros(()), unravel(y), None))[0]

    @eqx.filter_jit
    def applied_to_solved(dynamics, state):
        newton = NewtonMatrix(dynamics, state, jnp.asarray(0.3))
        b = flatten(dynamics, state)
        solved = unflatten(state, newton.solve(b, jnp.zeros(4)))
        applied = ravel_pytree(solved)[0]
        return applied - 0.3 * jax.jvp(field, (y,), (applied,))[1]

    applied = applied_to_solved(dynamics, state)
    np.testing.assert_allclose(applied, y, atol=1e-11 * float(jnp.max(jnp.abs(y))))


def test_rodas5p_is_l_stable():
    """The stability function is at most 1 for Re λ ≤ 0 and tends to 0 as −λh → ∞."""

    def growth(z):
        u = []
        for row, coupling in zip(rodas5p.A, rodas5p.C, strict=True):
            y = 1 + sum(a * k for a, k in zip(row, u, strict=True))
            pulled = sum(c * k for c, k in zip(coupling, u, strict=True))
            g = rodas5p.GAMMA
            u.append((g * z * y + g * pulled) / (1 - g * z))
        return 1 + np.dot(rodas5p.B, u)

    radii = np.logspace(-2, 8, 60)
    for angle in (np.pi, 0.75 * np.pi, 0.5 * np.pi):  # the left half-plane
        assert max(abs(growth(r * np.exp(1j * angle))) for r in radii) < 1 + 1e-12
    assert abs(growth(-1e8)) < 1e-6
    for z in (1e-2, -2e-2):
        assert abs(growth(z) - math.exp(z)) < abs(z) ** 6


@pytest.mark.parametrize(("case", "order"), [(SOFTMAX, 2), (SQUARED, 4)])
def test_rosenbrock_converges_with_order_5_and_4_between_steps(case, order):
    dynamics = hierarchy(case, order, width=64)
    solver = DenseRosenbrock(dynamics)
    exact = fixed(dynamics, diffrax.Dopri8(), 400)  # 0.83 is the end of a step
    inside, end = (
        [jnp.max(jnp.abs(fixed(dynamics, solver, k) - exact)[i]) for k in steps]
        for i, steps in enumerate(((6, 24), (4, 8)))
    )
    assert end[0] / end[1] > 2**4.5
    assert inside[0] / inside[1] > 4**3.7


@pytest.mark.parametrize(("order", "points"), [(4, 1), (3, 2), (4, 3)])
def test_exponential_converges_with_its_order(order, points):
    """Fixed steps after a start of order 1 give order min(points + 1, 3), since the
    first step has a local error of order 3."""
    dynamics = hierarchy(SQUARED, order, width=64)
    solver = DenseExponential(dynamics, points)
    exact = fixed(dynamics, diffrax.Dopri8(), 400)
    errors = [jnp.max(jnp.abs(fixed(dynamics, solver, k) - exact)[1]) for k in (32, 64)]
    assert errors[0] / errors[1] > 2 ** (min(points + 1, 3) - 0.4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_level_2_is_the_closed_form(solver):
    dynamics = hierarchy(SQUARED, 2, repeated=True)
    ts = jnp.array([0.5, 1e2, 1e4, 1e6])
    exact = nth.closed_form(nth.Kernels(dynamics.levels), dynamics.problem, ts)
    solution = nth.integrate(dynamics, ts, solver=solver(dynamics))
    np.testing.assert_allclose(solution.train, exact.train, atol=2e-7)
    np.testing.assert_allclose(solution.test, exact.test, atol=2e-7)
    evaluations = solver.evaluations_per_step * solution.stats["num_steps"]
    assert evaluations < 1000
    if solver is DenseExponential:  # exact for any step
        np.testing.assert_allclose(solution.train, exact.train, atol=1e-10)
        assert evaluations < 20


@pytest.mark.parametrize(("case", "order"), [(COUPLED, 2), (SOFTMAX, 3), (SQUARED, 4)])
def test_agrees_with_an_explicit_method(case, order):
    dynamics = hierarchy(case, order, width=64)
    ts = jnp.array([0.3, 0.9, 4.1, 9.7])
    exact = outputs(dynamics, ts, diffrax.Tsit5(), 1e-10)
    for solver in SOLVERS:
        actual = outputs(dynamics, ts, solver(dynamics))
        np.testing.assert_allclose(actual, exact, atol=5e-7)


def test_float32_agrees_with_float64():
    dynamics = hierarchy(SQUARED, 3, jnp.float32, width=64)
    ts = jnp.array([0.3, 4.1, 9.7, 50.0])
    double = hierarchy(SQUARED, 3, width=64)
    exact = outputs(double, ts, DenseRosenbrock(double), 1e-9)
    for solver in SOLVERS:
        actual = outputs(dynamics, ts.astype(jnp.float32), solver(dynamics))
        np.testing.assert_allclose(actual, exact, atol=1e-4)


def test_derivatives_and_batches_agree_with_tsit5_and_single_solves():
    base = hierarchy(SQUARED, 3, width=64, repeated=True)

    def value(scale, solver, tolerance):
        levels = tuple(scale * k for k in base.levels)
        dynamics = eqx.tree_at(lambda d: d.levels, base, levels)
        return jnp.sum(outputs(dynamics, [1.0, 9.0], solver(dynamics), tolerance))

    scales, h = jnp.array([0.5, 0.9]), 1e-3
    near = [value(s, lambda _: diffrax.Tsit5(), 1e-10) for s in (0.9 + h, 0.9 - h)]
    for solver in SOLVERS:

        def with_solver(scale, solver=solver):
            return value(scale, solver, 1e-6)

        values, slopes = jax.vmap(jax.value_and_grad(with_solver))(scales)
        np.testing.assert_allclose(slopes[1], (near[0] - near[1]) / (2 * h), rtol=1e-4)
        single = [with_solver(scale) for scale in scales]
        np.testing.assert_allclose(values, jnp.stack(single), rtol=1e-10)


def test_phi_functions_equal_their_integrals():
    z = jnp.array([-1e5, -30.0, -2.1, -1.9, -0.3, 0.0, 1.0])
    theta, weights = np.polynomial.legendre.leggauss(40)
    for k, value in enumerate(phi(z, 7)[1:], start=1):
        s = (1 + theta) / 2
        power = s ** (k - 1) / math.factorial(k - 1)
        exact = np.exp(z[1:, None] * (1 - s)[None]) @ (weights / 2 * power)
        np.testing.assert_allclose(value[1:], exact, rtol=1e-11)
        first = 1 / (1e5 * math.factorial(k - 1))  # the asymptotic series
        np.testing.assert_allclose(value[0], first, rtol=1e-4)


def test_double_integral_has_the_derivative_of_its_matrix():
    a = jnp.diag(jnp.array([3.0, 3.0, 0.0, 0.5]))
    forcing = jax.random.normal(jax.random.key(0), (3, 4))
    d = jax.random.normal(jax.random.key(1), (4, 4))
    d = d + d.T

    def integral(matrix, t):
        rates, modes = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
        return double_integral(matrix, rates, modes, t, forcing)

    t, h = jnp.asarray(1.3), 1e-5
    _, actual = jax.jvp(integral, (a, t), (d, jnp.asarray(2.0)))
    change = integral(a + h * d, t + 2 * h) - integral(a - h * d, t - 2 * h)
    np.testing.assert_allclose(actual, change / (2 * h), rtol=1e-7, atol=1e-8)
