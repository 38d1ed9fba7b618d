"""ROCK4: order, stability, error control, derivatives, and agreement with Tsit5."""
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportOptionalOperand=false

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nth
from nth._integrate.solvers.chebyshev import ROCK4
from nth._integrate.solvers.rock4_coefficients import rock4_coefficients


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def solve(vf, y0, t1, tol=1e-6, solver=None, **options):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vf),
        ROCK4() if solver is None else solver,
        0.0,
        t1,
        None,
        y0,
        stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),
        **{"max_steps": 2000, **options},
    )


def stability_polynomial(k, z):
    """R(z) for the k-th degree."""
    table = rock4_coefficients()
    sums, argument = [np.ones_like(z)] * 4, np.ones_like(z)
    for i in range(4):
        weights = table.weights[k, :, i]
        sums = [s + w * z * argument for s, w in zip(sums, weights, strict=True)]
        argument = sums[min(i, 2)]
    before = now = sums[3]
    for j in range(table.degrees[k] - 4):
        mu, nu = table.mu[k, j], table.nu[k, j]
        before, now = now, (mu * z + nu) * now + (1 - nu) * before
    return now


@pytest.mark.parametrize("k", range(len(rock4_coefficients().degrees)))
def test_stability_polynomial_is_accurate_and_damped(k):
    """e^z to order 4, and |R| ≤ 0.95 on the stability interval."""
    table = rock4_coefficients()
    small = -np.array([0.02, 0.04])
    error = np.abs(stability_polynomial(k, small) - np.exp(small))
    assert np.log2(error[1] / error[0]) == pytest.approx(5, abs=0.1)
    assert np.all(error < np.abs(small) ** 5 / 200)
    z = -np.linspace(0, table.intervals[k], 5000)
    assert np.all(np.abs(stability_polynomial(k, z[z < -0.06])) <= 0.95)
    assert table.intervals[k] > 0.23 * table.degrees[k] ** 2


@pytest.mark.parametrize("k", [0, 10, 20, 30, 42])
def test_forced_stiff_components_are_bounded(k):
    """Prothero–Robinson: y' = λ (y − φ) + φ' with φ = t²/2, in one step of size 1."""
    table = rock4_coefficients()
    rates = -np.linspace(0.05, 1, 200) * table.intervals[k]

    def vf(t, y, args):
        return rates * (y - t**2 / 2) + t

    state = ROCK4().init(diffrax.ODETerm(vf), jnp.zeros(()), 1.0, jnp.zeros(200), None)
    radius = jnp.asarray(table.intervals[k] / 1.1 * (1 - 1e-6))
    state = eqx.tree_at(lambda s: s.spectrum.radius, state, radius)
    term = diffrax.ODETerm(vf)
    y1, *_ = ROCK4().step(
        term, jnp.zeros(()), jnp.ones(()), jnp.zeros(200), None, state, False
    )
    assert jnp.abs(y1 - 0.5).max() < 0.1


@pytest.mark.parametrize("stiffness", [0.0, 300.0])
def test_convergence_is_of_order_4(stiffness):
    """Order 4 for an equation that is nonlinear and not autonomous, in constant steps.

    A decoupled stiff component sets the degree.
    """

    def vf(t, y, args):
        a, b, c = y
        return jnp.stack(
            [-a * b + jnp.sin(2 * t), a**2 - b * jnp.cos(t), -stiffness * c]
        )

    def at_end(h):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(vf), ROCK4(), 0.0, 2.0, h, jnp.array([1.0, 0.5, 1.0])
        ).ys[-1]

    exact = solve(vf, jnp.array([1.0, 0.5, 1.0]), 2.0, 1e-13, diffrax.Dopri8()).ys[-1]
    errors = [jnp.abs(at_end(h) - exact)[:2].max() for h in jnp.array([0.2, 0.1, 0.05])]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.5)


def test_stiff_equation_has_the_known_solution():
    """The heat equation: error near the tolerance, a sixth of Tsit5's evaluations."""
    rates = jnp.linspace(0.0, 1.0, 30) ** 2 * 2000

    def vf(t, y, args):
        return -rates * y + 0.1 * jnp.sin(t)

    w = 0.1 / (1 + rates**2)
    ts = jnp.linspace(0.0, 20.0, 40)

    @jax.vmap
    def exact(t):
        particular = w * (rates * jnp.sin(t) - jnp.cos(t))
        return particular + jnp.exp(-rates * t) * (1 + w)

    saveat = diffrax.SaveAt(ts=ts, solver_state=True)
    solved = solve(vf, jnp.ones(30), 20.0, saveat=saveat)
    assert jnp.abs(solved.ys - exact(ts)).max() < 2e-5
    tsit5 = solve(vf, jnp.ones(30), 20.0, solver=diffrax.Tsit5(), max_steps=40000)
    assert solved.solver_state.evaluations < tsit5.stats["num_steps"]
    assert solved.solver_state.spectrum.radius == pytest.approx(2000, rel=0.05)


def test_evaluations_are_counted():
    calls = []

    def vf(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return -jnp.array([1.0, 50.0, 400.0]) * y

    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(vf),
        ROCK4(),
        0.0,
        2.0,
        0.2,
        jnp.ones(3),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
    )
    jax.effects_barrier()
    assert len(calls) == solved.solver_state.evaluations


def test_jordan_blocks_are_stable():
    """Stable for Jordan blocks of size 3, such as those of the series in ε."""
    size, lam = 3, 500.0
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    block = -lam * np.eye(size) + 200 * np.eye(size, k=-1)
    matrix = jnp.asarray(basis @ block @ basis.T)

    def vf(t, y, args):
        return jnp.concatenate([matrix @ y[:3], -0.1 * y[3:]])

    saveat = diffrax.SaveAt(t1=True, solver_state=True)
    solved = solve(vf, jnp.ones(4), 50.0, saveat=saveat)
    np.testing.assert_allclose(solved.ys[-1, :3], 0, atol=1e-6)
    np.testing.assert_allclose(solved.ys[-1, 3], np.exp(-5.0), atol=1e-5)
    assert 0.95 * lam < solved.solver_state.spectrum.radius < 1.5 * lam
    assert solved.stats["num_steps"] < 100


def test_steps_beyond_the_largest_degree_are_rejected_without_evaluations():
    def vf(t, y, args):
        return jnp.array([-1e7, 0.0]) * y

    saveat = diffrax.SaveAt(t1=True, solver_state=True)
    solved = solve(vf, jnp.array([0.0, 1.0]), 0.1, saveat=saveat)
    np.testing.assert_allclose(solved.ys[-1], [0, 1], atol=1e-8)


def training(width=64):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    network = nth.MLP(3, width, 1, key=jax.random.key(1), dtype=jnp.float64)
    return network, nth.Problem(x, jnp.sin(x[:, 0]), x[:2] + 0.1)


def test_hierarchy_agrees_with_tsit5():
    network, problem = training()
    dynamics = nth.MatrixFreeHierarchy(network, problem, order=3)
    ts = [0.3, 2.0, 4.0]
    solved = nth.integrate(dynamics, ts, solver=ROCK4())
    tsit5 = nth.integrate(dynamics, ts, solver=diffrax.Tsit5())
    np.testing.assert_allclose(solved.train, tsit5.train, atol=1e-6)
    np.testing.assert_allclose(solved.test, tsit5.test, atol=1e-6)


def test_gradient_flow_agrees_with_tsit5():
    network, problem = training()
    ts = [0.3, 20.0, 60.0]
    solved = nth.gradient_flow(network, problem, ts, solver=ROCK4())
    tsit5 = nth.gradient_flow(network, problem, ts, solver=diffrax.Tsit5())
    np.testing.assert_allclose(solved.train, tsit5.train, atol=1e-6)


def test_level_2_agrees_with_the_closed_form_at_long_times():
    network, problem = training()
    ts = [1.0, 100.0, 3000.0]
    dynamics = nth.MatrixFreeHierarchy(network, problem, order=2)
    solved = nth.integrate(dynamics, ts, solver=ROCK4())
    exact = nth.closed_form(nth.kernels(network, problem, order=2), problem, ts)
    np.testing.assert_allclose(solved.train, exact.train, atol=1e-6)
    np.testing.assert_allclose(solved.test, exact.test, atol=1e-6)


def test_float32_agrees_with_the_closed_form():
    network, problem = training()
    network, problem = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf,
        (network, problem),
    )
    dynamics = nth.MatrixFreeHierarchy(network, problem, order=2)
    solved = nth.integrate(dynamics, [1.0, 1000.0], solver=ROCK4())
    exact = nth.closed_form(
        nth.kernels(network, problem, order=2), problem, [1.0, 1000.0]
    )
    np.testing.assert_allclose(solved.train, exact.train, atol=1e-4)


def test_forward_and_reverse_mode_agree():
    rates = jnp.array([0.3, 20.0, 400.0])

    def at_end(scale, adjoint):
        def vf(t, y, args):
            return -scale * rates * y + 0.1 * jnp.sum(y)

        return solve(vf, jnp.ones(3) * scale, 2.0, adjoint=adjoint).ys[-1].sum()

    one = jnp.ones(())
    reverse = jax.grad(at_end)(one, diffrax.RecursiveCheckpointAdjoint())
    _, forward = jax.jvp(lambda s: at_end(s, diffrax.ForwardMode()), (one,), (one,))
    h = 1e-4
    forward_mode = diffrax.ForwardMode()
    sides = at_end(one + h, forward_mode), at_end(one - h, forward_mode)
    assert reverse == pytest.approx(float(forward), rel=1e-9)
    assert reverse == pytest.approx(float((sides[0] - sides[1]) / (2 * h)), rel=1e-3)
