"""LowRankRosenbrock: coefficients, linear algebra, order, agreement with Tsit5."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nth
from nth._integrate.solvers import ros34pw2
from nth._integrate.solvers.low_rank_rosenbrock import LowRankNewton

# The truncation is inaccurate for networks this narrow; these tests are about a solver.
pytestmark = pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")

# Its Hessian couples the two outputs, and its gradient is 0 at f = y.
COUPLED = nth.CustomLoss(
    lambda f, y: jnp.sum(jnp.cosh(f - y)) + 0.4 * (f[0] - y[0]) * (f[1] - y[1])
)
KINDS = ("flow", "series-2", "series-3", "taylorized")


def dynamics_of(kind, dtype=jnp.float64, **options):
    network = nth.MLP(3, 4, 1, out_size=2, dtype=dtype, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3), dtype)
    y = jax.random.normal(jax.random.key(2), (3, 2), dtype)
    problem = nth.Problem(x[:3], y, x[3:], loss=COUPLED)
    if kind == "flow":
        return nth.GradientFlow(network, problem, **options)
    if kind == "taylorized":
        return nth.TaylorizedFlow(network, problem, degree=2, **options)
    order = int(kind[-1])
    return nth.MatrixFreeHierarchy(network, problem, order=order, **options)


def test_coefficients_satisfy_the_conditions_of_order_3_for_any_matrix():
    alpha, gamma, b = ros34pw2.ALPHA, ros34pw2.SLOPES, ros34pw2.WEIGHTS
    a, g = alpha.sum(1), gamma.sum(1)
    sums = [b.sum(), b @ a, b @ g, b @ a**2]
    sums += [b @ alpha @ a, b @ alpha @ g, b @ gamma @ a, b @ gamma @ g]
    expected = [1, 1 / 2, 0, 1 / 3, 1 / 6, 0, 0, 0]
    np.testing.assert_allclose(sums, expected, atol=1e-15)
    embedded = ros34pw2.EMBEDDED
    second = [embedded.sum(), embedded @ a, embedded @ g]
    np.testing.assert_allclose(second, [1, 1 / 2, 0], atol=1e-15)


def test_method_is_l_stable():
    def growth(z):
        matrix = np.eye(4) - z * (ros34pw2.ALPHA + ros34pw2.SLOPES)
        return 1 + z * ros34pw2.WEIGHTS @ np.linalg.solve(matrix, np.ones(4))

    assert np.max(np.abs([growth(-z) for z in np.logspace(-3, 8, 200)])) < 1
    assert np.max(np.abs([growth(1j * z) for z in np.logspace(-3, 8, 200)])) <= 1
    assert abs(growth(-1e10)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_solve_is_that_of_the_jacobian_where_the_gradient_is_zero(kind):
    """Where g = 0, the Jacobian of the vector field is −B H C."""
    dynamics = dynamics_of(kind, learning_rates=0.7)
    keys = iter(jax.random.split(jax.random.key(3), 100))
    state = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape),
        dynamics.initial_state(),
    )
    targets = dynamics.outputs(state)[:3]
    dynamics = eqx.tree_at(lambda d: d.problem.y_train, dynamics, targets)
    flat, unravel = ravel_pytree(state)

    def field(flat):
        rate = dynamics.vector_field(jnp.zeros(()), unravel(flat), None)
        return ravel_pytree(rate)[0]

    @eqx.filter_jit
    def solved(dynamics, state, right):
        newton = LowRankNewton(dynamics, state, jnp.asarray(a))
        return ravel_pytree(newton.solve(unravel(right)))[0]

    a, right = 2.5, np.cos(np.arange(flat.size))
    matrix = np.eye(flat.size) - a * np.asarray(jax.jit(jax.jacobian(field))(flat))
    actual = solved(dynamics, state, jnp.asarray(right))
    expected = np.linalg.solve(matrix, right)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def outputs_at(dynamics, t, state, args):
    return dynamics.outputs(state)


def outputs_after(dynamics, steps, ts):
    """Outputs at `ts` with steps of equal size up to t = 1."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(dynamics.vector_field),
        nth.LowRankRosenbrock(dynamics),
        0.0,
        1.0,
        jnp.asarray(1.0 / steps),
        dynamics.initial_state(),
        # Compiled once for both step sizes, unlike a new lambda.
        saveat=diffrax.SaveAt(ts=ts, fn=eqx.Partial(outputs_at, dynamics)),
    )
    assert solution.ys is not None
    return solution.ys


@pytest.mark.parametrize("kind", ["flow", "series-3"])
def test_convergence_is_of_order_3_at_and_between_steps(kind):
    """Far from g = 0, where the approximate Jacobian lacks the curvature of f."""
    dynamics = dynamics_of(kind, weight_decay=0.3)
    # The second is after a third of a step, of both sizes below.
    ts = jnp.array([0.4375, (7 + 1 / 3) / 16, 1.0])
    exact = nth.integrate(
        dynamics,
        ts,
        solver=diffrax.Dopri8(),
        stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-12),
    )
    expected = np.concatenate([exact.train, exact.test], axis=1)
    errors = [
        np.abs(outputs_after(dynamics, steps, ts) - expected).max(axis=(1, 2))
        for steps in (16, 64)
    ]
    orders = np.log2(errors[0] / errors[1]) / 2
    assert np.all(orders > 2.7)
    assert np.all(errors[0] < 1e-3)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=["float64", "32"])
def test_agrees_with_tsit5(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        dynamics = dynamics_of("series-2", dtype)
        implicit, explicit = (
            nth.integrate(dynamics, [0.5, 2.0], solver=solver).train
            for solver in (nth.LowRankRosenbrock(dynamics), diffrax.Tsit5())
        )
        assert implicit.dtype == dtype
        tolerance = 1e-6 if dtype == jnp.float64 else 2e-4
        np.testing.assert_allclose(implicit, explicit, atol=tolerance)


def test_derivatives_and_batches_agree_with_tsit5_and_single_solves():
    dynamics = dynamics_of("flow")

    def late(targets, tsit5):
        moved = eqx.tree_at(lambda d: d.problem.y_train, dynamics, targets)
        solver = diffrax.Tsit5() if tsit5 else nth.LowRankRosenbrock(moved)
        return nth.integrate(moved, [2.0], solver=solver).test.sum()

    y = dynamics.problem.y_train
    single = [late(targets, False) for targets in (y, -y)]
    together = jax.jit(jax.vmap(lambda targets: late(targets, False)))
    batched = together(jnp.stack([y, -y]))
    np.testing.assert_allclose(batched, single, rtol=1e-9)
    slope = jax.jit(jax.grad(late), static_argnums=1)
    reverse, expected = (slope(y, tsit5) for tsit5 in (False, True))
    np.testing.assert_allclose(reverse, expected, atol=1e-4)


def test_steps_do_not_shrink_with_the_slope_of_the_loss():
    """An absolute loss, averaged over ± 5e-4, to t = 1e6: a rate of 2,000 times λ,
    where explicit steps would number 1e9."""
    network = nth.MLP(3, 8, 1, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    y = jnp.array([0.3, -0.2, 0.1, 0.4])
    loss = nth.CustomLoss(lambda f, y: jnp.abs(f - y))
    solution = nth.gradient_flow(network, nth.Problem(x, y, loss=loss), [1e2, 1e6])
    np.testing.assert_allclose(solution.train, np.stack([y, y]), atol=5e-4)
    assert int(solution.stats["num_steps"]) < 1000
