"""The hierarchy against closed forms, SciPy, and the trained network."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import softmax

import nth

TIGHT = diffrax.PIDController(rtol=1e-11, atol=1e-13)


@pytest.fixture(scope="module")
def formed():
    """Kernels up to r = 3 of the plain problem."""
    return nth.kernels(make_network(), make_problem(), order=3)


def test_level_two_is_the_closed_form(problem, formed):
    """f(t) = y + e^{−Kt/n}(f₀ − y), and the corresponding test outputs."""
    n, y = problem.n_train, np.asarray(problem.y_train)
    f0, k = np.asarray(formed[1]), np.asarray(formed[2])
    ts = np.array([0.0, 0.7, 3.0, 20.0])
    hierarchy = nth.DenseHierarchy(formed, problem, order=2)
    solution = nth.integrate(hierarchy, ts, stepsize_controller=TIGHT)
    for i, t in enumerate(ts):
        shrink = expm(-k[:n] * t / n)
        np.testing.assert_allclose(
            solution.train[i], y + shrink @ (f0[:n] - y), atol=1e-9
        )
        moved = np.linalg.solve(k[:n], (shrink - np.eye(n)) @ (f0[:n] - y))
        np.testing.assert_allclose(solution.test[i], f0[n:] + k[n:] @ moved, atol=1e-9)


def test_level_three_is_the_integrated_form(problem, formed):
    """Paper, below eq. 30: r̃′ = −K⁽²⁾r̃/n + K⁽³⁾[R̃, r̃]/n², R̃′ = r̃.

    (The paper omits the second factor −1/n of the cubic term, and thus its sign.)
    """
    n = problem.n_train
    k2, k3 = np.asarray(formed[2][:n]), np.asarray(formed[3][:n])
    y = np.asarray(problem.y_train)

    def field(t, state):
        r, total = state[:n], state[n:]
        acceleration = -k2 @ r / n + np.einsum("abc,c,b->a", k3, total, r) / n**2
        return np.concatenate([acceleration, r])

    start = np.concatenate([np.asarray(formed[1][:n]) - y, np.zeros(n)])
    ts = np.linspace(0, 5, 6)
    expected = solve_ivp(field, (0, 5), start, "DOP853", ts, rtol=1e-11, atol=1e-13).y[
        :n
    ]
    hierarchy = nth.DenseHierarchy(formed, problem)
    solution = nth.integrate(hierarchy, ts, stepsize_controller=TIGHT)
    np.testing.assert_allclose(solution.train, expected.T + y, atol=1e-8)


def literal_equations(formed, problem, order, gradient):
    """dK⁽ʳ⁾/dt = −Σ_β K⁽ʳ⁺¹⁾[…, β] g_β, slot by slot, in NumPy."""
    tensors = [np.asarray(formed[r]) for r in range(1, order + 1)]
    shapes = [k.shape for k in tensors[:-1]]
    splits = np.cumsum([k.size for k in tensors[:-1]])[:-1]
    n = problem.n_train

    def field(t, state):
        parts = np.split(state, splits)
        levels = [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]
        g = gradient(levels[0][:n])
        rates = []
        for above in [*levels[1:], tensors[-1]]:
            if g.ndim == 1:
                rates.append(-sum(above[..., b] * g[b] for b in range(n)))
            else:
                slots = np.ndindex(*g.shape)
                rates.append(-sum(above[..., b, c] * g[b, c] for b, c in slots))
        return np.concatenate([rate.ravel() for rate in rates])

    return field, np.concatenate([k.ravel() for k in tensors[:-1]])


# Of one shape, so that the two tests below share compiled functions.
CASES = {"scalar": (None, nth.SquaredError()), "labels": (2, nth.SoftmaxCrossEntropy())}


def case_of(name):
    """Three training and two test points, and a network."""
    outputs, loss = CASES[name]
    problem = make_problem(3, 2, outputs=outputs, loss=loss)
    return problem, make_network(5, 2, outputs=outputs, sigma_w=1.5)


@pytest.mark.parametrize(("case", "orders"), [("scalar", [4]), ("labels", [2, 4])])
def test_levels_agree_with_scipy(case, orders):
    """The scalar levels 2 and 3 have their closed forms above."""
    problem, network = case_of(case)
    if case == "scalar":
        y = np.asarray(problem.y_train)
        gradient = lambda f: (f - y) / 3  # noqa: E731
    else:
        one_hot = np.eye(2)[np.asarray(problem.y_train)]
        gradient = lambda f: (softmax(f, axis=1) - one_hot) / 3  # noqa: E731

    formed = nth.kernels(network, problem, order=4)
    ts = np.linspace(0, 2, 5)
    for order in orders:
        field, start = literal_equations(formed, problem, order, gradient)
        expected = solve_ivp(field, (0, 2), start, "DOP853", ts, rtol=1e-10, atol=1e-12)
        outputs = expected.y[: formed[1].size].T.reshape(len(ts), *formed[1].shape)
        hierarchy = nth.DenseHierarchy(formed, problem, order=order)
        solution = nth.integrate(hierarchy, ts, stepsize_controller=TIGHT)
        np.testing.assert_allclose(solution.train, outputs[:, :3], atol=1e-6)
        np.testing.assert_allclose(solution.test, outputs[:, 3:], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_error_is_of_order_p_in_time(case):
    """Theorem 2.6 in time: a wrong sign, factor of n or slot order changes a slope."""
    problem, network = case_of(case)
    ts = np.geomspace(0.03, 0.12, 5)
    comparison = nth.compare(
        network, problem, ts, method="dense", stepsize_controller=TIGHT
    )
    for p in (2, 3, 4):
        for points in ("train", "test"):
            error = np.asarray(comparison.error(p, points))
            slope = np.polyfit(np.log(ts), np.log(error), 1)[0]
            assert abs(slope - p) < 0.2, (p, points, slope)


@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")  # of level 2, width 32
def test_errors_decrease_with_width_and_level():
    """TARGETS.md, last table: n = 8, d = 10, T = 20, tanh, two hidden layers.

    p = 3 has half of the O(1/width) terms, so it is accurate at short times only.
    """
    problem = make_problem(8, 0, 10)

    def errors(width):
        """Errors of levels 2, 3 and 4, at a short time and at T."""

        def errors_of(key):
            network = nth.MLP(10, width, 2, key=key)
            comparison = nth.compare(network, problem, [0.3, 20.0], method="dense")
            return [comparison.error(p, "train") for p in (2, 3, 4)]

        keys = jax.random.split(jax.random.key(0), 4)
        return np.median([errors_of(key) for key in keys], axis=0)

    narrow, wide = errors(32), errors(256)
    assert np.all(wide < narrow)
    assert wide[2, 1] < wide[0, 1] / 10
    assert wide[2, 1] < wide[1, 1] / 5
    assert narrow[1, 0] < narrow[0, 0] / 5
    assert narrow[1, 1] > narrow[0, 1] / 2


def test_kernels_can_be_reused_for_other_targets_and_losses(problem, formed):
    other = nth.Problem(
        problem.x_train, -problem.y_train, problem.x_test, loss=nth.LogisticLoss()
    )
    reused = nth.integrate(nth.DenseHierarchy(formed, other), [1.0])
    solved = nth.solve(make_network(), other, [1.0], order=3, method="dense")
    np.testing.assert_allclose(reused.test, solved.test, atol=1e-12)


def test_gradient_flow_agrees_with_scipy():
    problem = make_problem(3, 1)
    network = make_network(3, 1)
    theta, unravel = ravel_pytree(network)

    @jax.jit
    def field(t, theta):
        def loss(theta):
            f = jax.vmap(unravel(theta))(problem.x_train)
            return jnp.sum((f - problem.y_train) ** 2) / 6

        return -jax.grad(loss)(theta)

    end = solve_ivp(field, (0, 4), theta, "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    expected = jax.vmap(unravel(jnp.asarray(end)))(problem.x)
    solution = nth.gradient_flow(network, problem, [4.0])
    np.testing.assert_allclose(solution.train[0], expected[:3], atol=1e-6)
    np.testing.assert_allclose(solution.test[0], expected[3:], atol=1e-6)


def test_gradient_flow_of_a_linear_network_has_an_invariant():
    """λ² − 4f²/N is conserved at zero target (Lewkowycz et al. 2020)."""
    width = 5
    network = nth.MLP(
        1, width, 1, activation="linear", parameterization="ntk", key=jax.random.key(3)
    )
    problem = nth.Problem(np.ones((1, 1)), np.zeros(1))
    flow = nth.GradientFlow(network, problem)
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: flow.vector_field(jnp.asarray(t), y, args)),
        diffrax.Tsit5(),
        0.0,
        1.0,
        0.01,
        flow.initial_state(),
    )

    def invariant(params):
        f = params.weights[1] @ params.weights[0] / width**0.5
        ntk = (
            jnp.sum(params.weights[0] ** 2) + jnp.sum(params.weights[1] ** 2)
        ) / width
        return ntk**2 - 4 * f[0, 0] ** 2 / width

    last = jax.tree.map(lambda leaf: leaf[-1], solved.ys)
    np.testing.assert_allclose(invariant(last), invariant(network), rtol=1e-9)
