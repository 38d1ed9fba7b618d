"""`solver="auto"`: its choice, and that solves to long times and past kinks finish."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth
from nth._dynamics.stiffness import fastest_rate
from nth._integrate.choice import choose

# The truncation is inaccurate for networks this narrow; these tests are about solvers.
pytestmark = pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")

LOSSES = {
    "squared": nth.SquaredError(),
    "logistic": nth.LogisticLoss(),
    "hinge": nth.CustomLoss(lambda f, y: jnp.maximum(0.0, 1 - y * f)),
    "absolute": nth.CustomLoss(lambda f, y: jnp.abs(f - y)),
    "quartic": nth.CustomLoss(lambda f, y: (f - y) ** 4),
}


def problem_of(loss):
    problem = make_problem(4, 3)
    return nth.Problem(
        problem.x_train, jnp.sign(problem.y_train), problem.x_test, loss=LOSSES[loss]
    )


def dynamics_of(kind, loss="squared", **options):
    network, problem = make_network(4, 1, **options), problem_of(loss)
    if kind == "flow":
        return nth.GradientFlow(network, problem)
    if kind == "taylorized":
        return nth.TaylorizedFlow(network, problem, degree=2)
    form, order = kind.split("-")
    if form == "series":
        return nth.MatrixFreeHierarchy(network, problem, order=int(order))
    kernels = nth.kernels(network, problem, order=int(order))
    return nth.DenseHierarchy(kernels, problem, order=int(order))


@pytest.mark.parametrize("kind", ["dense-2", "series-3", "flow", "taylorized"])
def test_fastest_rate_is_the_largest_eigenvalue(kind):
    """From below, and within a factor of 2 of λ_max(K)/n for the squared error."""
    dynamics = dynamics_of(kind)
    kernel = nth.kernels(make_network(4, 1), problem_of("squared"), order=2)[2][:4]
    largest = float(np.linalg.eigvalsh(kernel)[-1]) / 4
    estimate = fastest_rate(dynamics)
    assert estimate is not None
    assert largest / 2 < float(estimate) <= largest * (1 + 1e-9)


def test_fastest_rate_scales_with_learning_rates_and_adds_decay():
    network, problem = make_network(4, 1), problem_of("squared")
    plain = fastest_rate(nth.GradientFlow(network, problem))
    other = nth.GradientFlow(network, problem, learning_rates=3.0, weight_decay=0.5)
    assert plain is not None
    expected = 3 * float(plain) + 0.5
    np.testing.assert_allclose(float(fastest_rate(other)), expected, rtol=1e-9)  # pyright: ignore


CHOICES = [
    ("dense-2", "squared", 1.0, "Tsit5"),
    ("dense-2", "squared", 1e4, "DenseExponential"),
    ("dense-2", "logistic", 1e5, "DenseRosenbrock"),
    ("dense-2", "hinge", 1.0, "DenseRosenbrock"),
    ("series-2", "squared", 1.0, "Tsit5"),
    ("series-2", "squared", 1e4, "ROCK4"),
    ("series-2", "squared", 1e6, "LowRankRosenbrock"),
    ("flow", "squared", 1e4, "ROCK4"),
    ("flow", "squared", 1e6, "LowRankRosenbrock"),
    ("flow", "absolute", 1.0, "LowRankRosenbrock"),
    ("flow", "absolute", 1e6, "LowRankRosenbrock"),
    ("series-2", "hinge", 1e5, "LowRankRosenbrock"),
    ("flow", "quartic", 1.0, "Tsit5"),
]


@pytest.mark.parametrize(("kind", "loss", "last", "solver"), CHOICES)
def test_the_solver_matches_the_problem(kind, loss, last, solver):
    choice = choose(dynamics_of(kind, loss), jnp.array([last]), "auto", adaptive=True)
    assert type(choice.solver).__name__ == solver


# Solves of the other choices are below, and at kinks in test_low_rank_rosenbrock.py.
@pytest.mark.parametrize(
    ("kind", "loss", "last", "solver"),
    [
        ("dense-2", "logistic", 1e5, "DenseRosenbrock"),
        ("dense-2", "hinge", 1.0, "DenseRosenbrock"),
        ("series-2", "squared", 1e4, "ROCK4"),
        ("flow", "squared", 1e4, "ROCK4"),
        ("flow", "squared", 1e6, "LowRankRosenbrock"),
        ("series-2", "hinge", 1e5, "LowRankRosenbrock"),
        ("flow", "quartic", 1.0, "Tsit5"),
    ],
)
def test_solves_with_the_chosen_solver_succeed(kind, loss, last, solver):
    solution = nth.integrate(dynamics_of(kind, loss), [last])
    assert solution.stats["solver"] == solver
    assert solution.result == nth.RESULTS.successful
    assert int(solution.stats["num_evaluations"]) >= int(solution.stats["num_steps"])


def test_networks_with_kinks_take_tsit5():
    solution = nth.integrate(dynamics_of("flow", activation="relu"), [300.0])
    assert solution.stats["solver"] == "Tsit5"


def test_fixed_steps_and_traced_values_take_tsit5():
    dynamics = dynamics_of("flow")
    fixed = nth.integrate(
        dynamics, [1.0], stepsize_controller=diffrax.ConstantStepSize(), dt0=0.1
    )
    assert fixed.stats["solver"] == "Tsit5"

    @jax.jit
    def solve(last):
        solution = nth.integrate(dynamics, last[None])
        assert solution.stats["solver"] == "Tsit5"
        return solution.train

    eager = nth.integrate(dynamics, [2.0], solver=nth.ROCK4())
    np.testing.assert_allclose(solve(jnp.asarray(2.0)), eager.train, atol=1e-6)


def test_asymmetric_kernels_take_tsit5():
    problem = problem_of("squared")
    f, ntk = nth.kernels(make_network(4, 1), problem, order=2)
    skewed = nth.Kernels((f, ntk.at[0, 1].add(1e-2)))
    dynamics = nth.DenseHierarchy(skewed, problem, order=2)
    solution = nth.integrate(dynamics, [300.0])
    assert solution.stats["solver"] == "Tsit5"


# ---------------------------------------------------------------- long times


@pytest.mark.parametrize("kind", ["dense-2", "series-2"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_late_times_do_not_reduce_the_accuracy_of_early_ones(kind, dtype):
    """The closed form, from t = 0.1 to 1e6, in one solve."""
    ts = [0.1, 1.0, 30.0, 1e3, 1e6]
    network, problem = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf,
        (make_network(4, 1), problem_of("squared")),
    )
    kernels = nth.kernels(network, problem, order=2)
    if kind == "dense-2":
        dynamics = nth.DenseHierarchy(kernels, problem)
    else:
        dynamics = nth.MatrixFreeHierarchy(network, problem, order=2)
    solution = nth.integrate(dynamics, ts)
    exact = nth.closed_form(kernels, problem, ts)
    bound = 3e-6 if dtype == "float64" else 3e-3
    np.testing.assert_allclose(solution.train, exact.train, atol=bound)
    np.testing.assert_allclose(solution.test, exact.test, atol=bound)
    assert solution.result == nth.RESULTS.successful


def test_a_common_learning_rate_rescales_time():
    """M = c only rescales the time: K → cK."""
    network, problem = make_network(4, 1), problem_of("squared")
    plain = nth.solve(network, problem, [1.0, 1e3], order=2, method="dense")
    for scale in (1e30, 1e-20):
        ts = np.array([1.0, 1e3]) / scale
        options = {"learning_rates": scale, "order": 2, "method": "dense"}
        scaled = nth.solve(network, problem, ts, **options)
        np.testing.assert_allclose(scaled.train, plain.train, atol=1e-6)


# ---------------------------------------------------------------- kinks


def test_absolute_error_stays_at_its_minimum():
    """df/dt = −K sign(f − y)/n: a point reaches its target at t = n|f − y|/K and stays
    there."""
    problem = nth.Problem(jnp.array([1.0]), jnp.array([1.0]), loss=LOSSES["absolute"])
    network = nth.from_apply(lambda q, x: q * x, jnp.array(0.0))
    ts = [0.5, 0.9, 2.0, 1e6]
    expected = np.array([[0.5], [0.9], [1.0], [1.0]])
    for solution in (
        nth.gradient_flow(network, problem, ts),
        nth.solve(network, problem, ts, order=2, method="dense"),
    ):
        np.testing.assert_allclose(solution.train, expected, atol=1e-3)
        assert solution.result == nth.RESULTS.successful


def test_the_reported_loss_is_not_averaged():
    solution = nth.integrate(dynamics_of("dense-2", "absolute"), [0.0, 0.5])
    y = problem_of("absolute").y_train
    expected = np.mean(np.abs(np.asarray(solution.train) - np.asarray(y)), axis=1)
    np.testing.assert_allclose(solution.loss, expected, rtol=1e-12)


def test_a_resumed_solve_uses_the_same_solver(tmp_path):
    dynamics, file = dynamics_of("dense-2"), tmp_path / "run.npz"
    ts = [1.0, 100.0, 1000.0]
    first = nth.integrate(dynamics, ts, checkpoint=file)
    again = nth.integrate(dynamics, ts, checkpoint=file)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first.stats["solver"] == again.stats["solver"] == "DenseExponential"
