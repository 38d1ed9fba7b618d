"""Discrete training: saved values, checkpoints, segments, and analysis along steps."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth
from nth._discrete import run_options, training_loop

KEY = jax.random.key(5)
LABELS = make_problem(4, 1, outputs=2, loss=nth.SoftmaxCrossEntropy())
PAIR = make_network(3, 1, outputs=2)
STEPS = 40
NOISY = optax.chain(optax.add_noise(1e-3, 0.5, key=KEY), optax.adam(1e-2))


def test_saved_values_are_those_of_the_state():
    flow = nth.GradientFlow(PAIR, LABELS)
    hierarchy = nth.MatrixFreeHierarchy(PAIR, LABELS, order=3)
    requested = [0, 2, 3]
    optimizer = optax.sgd(0.3)
    for dynamics, run in (
        (flow, lambda steps, **o: nth.train(PAIR, LABELS, steps, optimizer, **o)),
        (
            hierarchy,
            lambda steps, **o: nth.solve_discrete(
                PAIR, LABELS, steps, optimizer, order=3, **o
            ),
        ),
    ):

        def saved(step: Any, state: Any, args: Any, dynamics: Any = dynamics) -> Any:
            return {"ntk": dynamics.ntk(state), "step": step.astype(float)}

        ntk = eqx.filter_jit(dynamics.ntk)
        values = run(requested, save_fn=saved).saved
        np.testing.assert_array_equal(values["step"], requested)
        for i, step in enumerate(requested):
            expected = ntk(run([step]).state)
            np.testing.assert_allclose(values["ntk"][i], expected, atol=1e-13)
    start, last = values["ntk"][0], values["ntk"][-1]
    assert np.max(np.abs(start - last)) > 1e-2


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("level", [False, True])
def test_an_interrupted_run_resumes_exactly(
    level: bool, tmp_path: Path, monkeypatch: Any
):
    """With the batches, noise and moments of the uninterrupted run."""

    def run(**options: Any) -> nth.Solution:
        options |= {"batch_size": 2, "key": KEY}
        if level:
            steps = [0, 7, STEPS]
            optimizer = optax.adam(1e-3)
            return nth.solve_discrete(
                PAIR, LABELS, steps, optimizer, order=3, **options
            )
        return nth.train(PAIR, LABELS, STEPS, NOISY, **options)

    file, whole = tmp_path / "run.npz", run()
    monkeypatch.setattr(run_options, "WRITE_INTERVAL", 0.0)
    writes, until = [], training_loop._until

    def interrupted(save: Any, plan: Any, reached: Any, stop: Any) -> Any:
        if int(reached.step) >= 16:
            raise StoppedError
        return until(save, plan, reached, stop)

    monkeypatch.setattr(training_loop, "_until", interrupted)
    with pytest.raises(StoppedError):
        run(checkpoint=file)
    assert file.exists()

    def counted(save: Any, plan: Any, reached: Any, stop: Any) -> Any:
        writes.append(int(reached.step))
        return until(save, plan, reached, stop)

    monkeypatch.setattr(training_loop, "_until", counted)
    resumed = run(checkpoint=file)
    assert writes[0] == 16
    for actual, expected in zip(
        jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    again = run(checkpoint=file)  # complete: nothing is computed
    assert writes[-1] < STEPS
    np.testing.assert_array_equal(again.train, whole.train)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    file = tmp_path / "run.npz"

    def run(rate: float, **options: Any) -> Any:
        return nth.train(PAIR, LABELS, 3, optax.sgd(rate), checkpoint=file, **options)

    run(0.1)
    content = file.read_bytes()
    others = ({"rate": 0.2}, {"rate": 0.1, "batch_size": 2, "key": KEY})
    for other in others:
        with pytest.raises(ValueError, match="belongs to another solve"):
            run(**other)
    assert file.read_bytes() == content


def test_each_model_of_a_comparison_has_a_file(tmp_path: Path):
    file = tmp_path / "run.npz"
    nth.compare_discrete(PAIR, LABELS, 2, optax.sgd(0.1), (2, 3), checkpoint=file)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run-truth.npz", "run-p2.npz", "run-p3.npz"}


def test_segments_equal_a_single_scan():
    """Under `jax.jit` a run is one scan, otherwise several segments."""

    def run() -> Any:
        return nth.train(PAIR, LABELS, STEPS, NOISY).train

    np.testing.assert_allclose(run(), jax.jit(run)(), atol=1e-13)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("save_fn", {"save_fn": 3}),
        ("save_fn", {"save_fn": lambda step, state, args: step}),
        ("save_fn", {"save_fn": lambda state: jnp.zeros(2)}),
        ("progress", {"progress": 1}),
        ("checkpoint", {"checkpoint": "/nowhere/run.npz"}),
    ],
)
def test_bad_options_are_named(argument: str, options: Any, monkeypatch: Any):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"^{argument}"):
        nth.train(PAIR, LABELS, 2, optax.sgd(0.1), **options)


def test_checkpoints_are_refused_under_jit(tmp_path: Path):
    def run() -> Any:
        file = tmp_path / "run.npz"
        return nth.train(PAIR, LABELS, 2, optax.sgd(0.1), checkpoint=file).train

    with pytest.raises(ValueError, match=r"checkpoint .* jax\.jit"):
        jax.jit(run)()


# ---------------------------------------------------------------- along the steps


def test_kernels_along_steps_are_those_of_the_states():
    """Kernels along steps are those of the states; that of level 2 is constant."""
    sgd = optax.sgd(0.3)
    path = nth.kernel_along_steps(PAIR, LABELS, [0, 3], sgd)
    trained = nth.train(PAIR, LABELS, [3], sgd).state
    expected = nth.kernels(trained, LABELS, order=2)[2]
    np.testing.assert_allclose(path.ntk[1], expected, atol=1e-12)
    np.testing.assert_allclose(path.ntk[0], path.start, atol=1e-13)
    np.testing.assert_array_equal(path.ts, [0, 3])
    errors = []
    for order in (2, 3, 4):
        level = nth.kernel_along_steps(PAIR, LABELS, [0, 3], sgd, order=order)
        np.testing.assert_allclose(level.start, path.start, atol=1e-12)
        errors.append(np.max(np.abs(level.ntk[1] - path.ntk[1])))
        if order == 2:
            np.testing.assert_allclose(level.ntk[1], level.start, atol=1e-13)
    assert errors[2] < errors[1] / 2 < errors[0] / 4


def hessian_of(params: Any, problem: nth.Problem) -> Any:
    theta, unravel = ravel_pytree(params)

    def loss(theta: Any) -> Any:
        outputs = jax.vmap(unravel(theta))(problem.x_train)
        return problem.loss(outputs, problem.y_train)

    return jax.jit(jax.hessian(loss))(theta)


@pytest.mark.parametrize("rate", [None, 0.3])
def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(rate: float | None):
    rates = None
    if rate is not None:
        rates = jax.tree.map(lambda _: 1.0, PAIR)
        rates = eqx.tree_at(lambda net: net.weights[0], rates, rate)
    optimizer = optax.adam(1e-2)
    path = nth.sharpness_along(PAIR, LABELS, [0, 5], optimizer, learning_rates=rates)
    for i, step in enumerate([0, 5]):
        trained = nth.train(PAIR, LABELS, [step], optimizer, learning_rates=rates)
        factor = jax.tree.map(
            lambda leaf, r: jnp.full_like(leaf, r) ** 0.5,
            PAIR,
            jax.tree.map(lambda _: 1.0, PAIR) if rates is None else rates,
        )
        roots = np.asarray(ravel_pytree(factor)[0])
        matrix = hessian_of(trained.state, LABELS) * roots[:, None] * roots[None]
        expected = np.linalg.eigvalsh(matrix).max()
        np.testing.assert_allclose(path.sharpness[i], expected, rtol=1e-6)


def test_sharpness_after_a_catapult_is_below_two_over_the_rate():
    """For a general network, whose loss first increases."""
    problem, network = make_problem(4, 1), make_network(32, 2)
    rate = 1.6 * nth.max_learning_rate(network, problem)
    path = nth.sharpness_along(network, problem, 80, optax.sgd(rate))
    loss = path.solution.loss
    assert path.sharpness[0] > 2 / rate
    assert np.max(loss) > 1.5 * loss[0]
    assert loss[-1] < 1e-3 * loss[0]
    assert path.sharpness[-1] < 2 / rate


def test_taylorized_training_has_its_known_limits():
    """Degree 1 is level 2, a linear network is a polynomial in its parameters, and
    small steps approximate the flow."""
    adam = optax.adam(1e-2)
    linear = nth.train_taylorized(PAIR, LABELS, 4, adam, degree=1)
    level = nth.solve_discrete(PAIR, LABELS, 4, adam, order=2)
    np.testing.assert_allclose(linear.train, level.train, atol=1e-12)
    quadratic = make_network(3, 1, activation="linear")
    problem, optimizer = make_problem(4, 1), optax.adamw(1e-2, weight_decay=0.1)
    batches: Any = {"batch_size": 2, "key": KEY}
    same = nth.train_taylorized(quadratic, problem, 4, optimizer, degree=2, **batches)
    truth = nth.train(quadratic, problem, 4, optimizer, **batches)
    np.testing.assert_allclose(same.test, truth.test, atol=1e-12)
    flow = nth.TaylorizedFlow(PAIR, LABELS, degree=2)
    followed = nth.integrate(flow, [0.1])
    steps = nth.train_taylorized(PAIR, LABELS, [1000], optax.sgd(1e-4), degree=2)
    np.testing.assert_allclose(steps.train, followed.train, atol=1e-5)
    comparison = nth.compare_discrete(
        PAIR, LABELS, 4, adam, (2,), models={"linearized": linear}
    )
    np.testing.assert_allclose(
        comparison.error("linearized"), comparison.error(2), atol=1e-12
    )
    with pytest.raises(ValueError, match=r"models\['linearized'\]"):
        nth.compare_discrete(PAIR, LABELS, 3, adam, (2,), models={"linearized": linear})
