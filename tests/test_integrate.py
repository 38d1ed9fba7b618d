"""Integration: times, options and statistics."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from relaxation import Relaxation

import nth
from nth._integrate.progress import DelayedProgressMeter, as_meter


@pytest.fixture(scope="module")
def hierarchy():
    problem = make_problem()
    return nth.DenseHierarchy(
        nth.kernels(make_network(4, 1), problem, order=3), problem
    )


def test_training_begins_at_time_zero(hierarchy):
    whole = nth.integrate(hierarchy, [0.0, 1.0, 3.0])
    np.testing.assert_array_equal(whole.train[0], hierarchy.levels[0][:4])
    late = nth.integrate(hierarchy, [3.0])
    np.testing.assert_allclose(late.train[0], whole.train[-1], atol=1e-8)


def test_a_solve_may_end_at_time_zero(hierarchy):
    solution = nth.integrate(hierarchy, [0.0])
    np.testing.assert_array_equal(solution.test[0], hierarchy.levels[0][4:])
    assert solution.valid_until == jnp.inf


def test_loss_is_that_of_the_outputs(hierarchy):
    solution = nth.integrate(hierarchy, [0.0, 1.0, 3.0])
    y = np.asarray(hierarchy.problem.y_train)
    expected = [np.mean((f - y) ** 2) / 2 for f in np.asarray(solution.train)]
    np.testing.assert_allclose(solution.loss, expected)


def test_given_solver_and_controller_are_used(hierarchy):
    """Halving a constant step of Heun's method divides the error by 4, not by 2⁵."""
    tight = diffrax.PIDController(rtol=1e-12, atol=1e-13)
    exact = nth.integrate(hierarchy, [2.0], stepsize_controller=tight).train
    errors = []
    for steps in (20, 40):
        controller = diffrax.StepTo(jnp.linspace(0, 2, steps + 1))
        solution = nth.integrate(
            hierarchy, [2.0], solver=diffrax.Heun(), stepsize_controller=controller
        )
        assert solution.stats["num_steps"] == steps
        errors.append(float(jnp.max(jnp.abs(solution.train - exact))))
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2


def test_forward_mode_adjoint_gives_the_same_solution(hierarchy):
    """`ForwardMode` and the default adjoint give the same solution."""
    forward = nth.integrate(hierarchy, [1.0], adjoint=diffrax.ForwardMode())
    np.testing.assert_allclose(
        forward.train, nth.integrate(hierarchy, [1.0]).train, atol=1e-14
    )


def test_statistics_and_label_describe_the_solve(hierarchy):
    solution = nth.integrate(hierarchy, [1.0])
    assert solution.label == "level-3 hierarchy"
    assert solution.stats["last_time"] == 1.0
    assert solution.stats["num_steps"] >= solution.stats["num_accepted_steps"] > 1
    assert solution.result == nth.RESULTS.successful


def test_custom_dynamics_are_integrated():
    """df/dt = −g: each output relaxes to its target as e^{−t/n}."""

    problem = make_problem()
    solution = nth.integrate(Relaxation(problem=problem), [1.0])
    y = np.asarray(problem.y_train)
    np.testing.assert_allclose(solution.train[0], y * (1 - np.exp(-0.25)), atol=1e-7)


# ---------------------------------------------------------------- solvers and steps

FIXED: Any = {"stepsize_controller": diffrax.ConstantStepSize()}


@pytest.mark.parametrize(
    ("solver", "order"), [(diffrax.Heun(), 2), (diffrax.Euler(), 1)]
)
def test_fixed_steps_converge_at_the_order_of_the_solver(hierarchy, solver, order):
    tight = diffrax.PIDController(rtol=1e-12, atol=1e-13)
    exact = nth.integrate(hierarchy, [2.0], stepsize_controller=tight).train
    errors = []
    for dt0 in (0.1, 0.05):
        solution = nth.integrate(hierarchy, [2.0], solver=solver, dt0=dt0, **FIXED)
        assert solution.stats["num_steps"] == round(2 / dt0)
        errors.append(float(jnp.max(jnp.abs(solution.train - exact))))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2


def test_fixed_steps_through_every_entry_point():
    """All entry points take `dt0`, and steps end at each requested time."""
    network, problem = make_network(4, 1), make_problem()
    options: Any = {"solver": diffrax.Heun(), "dt0": 0.05, **FIXED}
    ts = [0.0, 0.3, 1.0]
    level = nth.solve(network, problem, ts, order=2, method="dense", **options)
    both = nth.compare(network, problem, ts, (2,), method="dense", **options)
    np.testing.assert_array_equal(both.solutions[2].train, level.train)
    assert both.truth.stats["num_steps"] == 20
    close = nth.solve(network, problem, ts, order=2, method="dense")
    np.testing.assert_allclose(level.train, close.train, atol=1e-3)


def test_an_initial_step_does_not_change_the_solution(hierarchy):
    solution = nth.integrate(hierarchy, [1.0], dt0=1e-3)
    np.testing.assert_allclose(
        solution.train, nth.integrate(hierarchy, [1.0]).train, atol=1e-6
    )


ROOT = diffrax.VeryChord(rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": diffrax.Kvaerno3()},
        {"solver": diffrax.Kvaerno3(root_finder=ROOT), "dt0": 0.02, **FIXED},
        {"solver": diffrax.HalfSolver(diffrax.Euler())},
        {"solver": diffrax.LeapfrogMidpoint(), "dt0": 0.005, **FIXED},
        {"solver": diffrax.ReversibleHeun(), "dt0": 0.01, **FIXED},
        {"adjoint": diffrax.DirectAdjoint()},
    ],
    ids=["implicit", "implicit-fixed", "half", "leapfrog", "reversible", "direct"],
)
def test_solvers_of_all_families_agree(hierarchy, options):
    """Supported solvers, which are the cures for those that are refused."""
    solution = nth.integrate(hierarchy, [1.0], **options)
    exact = nth.integrate(hierarchy, [1.0]).train
    np.testing.assert_allclose(solution.train, exact, atol=1e-4)


# ---------------------------------------------------------------- failed solves


def test_fixed_steps_pass_a_kink():
    """f = θ with loss |f − 1|: df/dt = 1 up to the kink at t = 1, then 0."""
    kinked = nth.Problem([1.0], [1.0], loss=nth.CustomLoss(lambda f, y: jnp.abs(f - y)))
    network: Any = nth.from_apply(lambda theta, x: theta * x, jnp.array(0.0))
    message = r"At a kink of the loss .*: use fixed steps, solver=diffrax.Heun"
    with pytest.raises(RuntimeError, match=message):
        nth.gradient_flow(
            network, kinked, [20.0], solver=diffrax.Tsit5(), max_steps=2**10
        )
    passed = nth.gradient_flow(network, kinked, [0.5, 2.0], max_steps=2**9)
    np.testing.assert_allclose(passed.train[:, 0], [0.5, 1.0], atol=1e-3)
    options: Any = {"solver": diffrax.Heun(), "dt0": 0.01, **FIXED}
    solution = nth.gradient_flow(network, kinked, [0.5, 2.0], **options)
    np.testing.assert_allclose(solution.train[:, 0], [0.5, 1.0], atol=0.011)


def test_more_steps_are_the_cure_for_too_few(hierarchy):
    with pytest.raises(RuntimeError, match="it took max_steps=2 steps"):
        nth.integrate(hierarchy, [5.0], max_steps=2)
    assert np.isfinite(nth.integrate(hierarchy, [5.0], max_steps=200).loss).all()


@pytest.mark.parametrize("part", ["train", "test", "loss"])
def test_a_failure_under_jit_has_the_same_message(part):
    """Whichever part of the solution is used."""
    network, problem = make_network(4, 1), make_problem()

    @eqx.filter_jit
    def run(scale):
        flow = nth.GradientFlow(network, problem, learning_rates=scale)
        return getattr(nth.integrate(flow, [50.0], max_steps=2), part)

    with pytest.raises(Exception, match=r"it took max_steps=2 steps\. Give a larger"):
        jax.block_until_ready(run(jnp.ones(())))


def test_no_bar_without_a_cpu_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `JAX_PLATFORMS=cuda` there is none, and JAX's callbacks need one."""

    def no_cpu(**_: Any) -> Any:
        raise RuntimeError("Unknown backend cpu")

    assert isinstance(as_meter(True, "solve", jnp.zeros(2)), DelayedProgressMeter)
    monkeypatch.setattr(jax, "local_devices", no_cpu)
    meter = as_meter(True, "solve", jnp.zeros(2))
    assert isinstance(meter, diffrax.NoProgressMeter)
