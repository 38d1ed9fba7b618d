"""Comparisons: errors, accuracy, table, figure and data set."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem

import nth

TS = np.array([0.0, 0.5, 2.0])


@pytest.fixture(scope="module")
def scalar():
    problem = make_problem(4, 3)
    y_test = np.array([1.0, -1.0, 1.0])
    return nth.compare(
        make_network(4, 1), problem, TS, (2, 3), y_test=y_test, method="dense"
    )


@pytest.fixture(scope="module")
def labeled():
    problem = make_problem(4, 3, outputs=2, loss=nth.SoftmaxCrossEntropy())
    network = make_network(4, 1, outputs=2)
    labels = np.array([0, 1, 1])
    return nth.compare(network, problem, TS, [2], y_test=labels, method="dense")


def test_members_are_the_solutions(scalar):
    network, problem = make_network(4, 1), make_problem(4, 3)
    truth = nth.gradient_flow(network, problem, TS)
    level = nth.solve(network, problem, TS, order=3, method="dense")
    np.testing.assert_allclose(scalar.truth.test, truth.test, atol=1e-12)
    np.testing.assert_allclose(scalar.solutions[3].test, level.test, atol=1e-12)
    np.testing.assert_array_equal(scalar.ts, TS)


def test_error_is_root_mean_square(scalar, labeled):
    for comparison in (scalar, labeled):
        for points in ("train", "test"):
            level = np.asarray(getattr(comparison.solutions[2], points))
            truth = np.asarray(getattr(comparison.truth, points))
            expected = [np.sqrt(np.mean(d**2)) for d in level - truth]
            np.testing.assert_allclose(comparison.error(2, points), expected)


def test_accuracy_compares_signs(scalar):
    expected = [
        np.mean(np.sign(f) == [1, -1, 1]) for f in np.asarray(scalar.truth.test)
    ]
    np.testing.assert_allclose(scalar.accuracy("truth"), expected)


def test_accuracy_compares_classes(labeled):
    for points, labels in (("train", [0, 1, 0, 1]), ("test", [0, 1, 1])):
        outputs = np.asarray(getattr(labeled.solutions[2], points))
        expected = np.mean(outputs.argmax(axis=2) == labels, axis=1)
        np.testing.assert_allclose(labeled.accuracy(2, points), expected)


def test_targets_that_are_not_labels_have_no_accuracy():
    x = make_problem(4, 3).x
    problem = nth.Problem(x[:4], np.array([0.3, 0.1, -2.0, 1.0]), x[4:])
    comparison = nth.compare(make_network(4, 1), problem, TS, [2], method="dense")
    assert comparison.accuracy("truth", "train") is None
    assert comparison.accuracy(2, "test") is None
    assert "accuracy" not in str(comparison)


def test_table_holds_the_errors(scalar):
    table = str(scalar)
    assert len(max(table.splitlines(), key=len)) <= 80
    for p in (2, 3):
        assert f"p = {p}" in table
        assert f"{float(scalar.error(p, 'test')[-1]):.1e}" in table
        assert f"{float(scalar.error(p, 'train')[1]):.1e}" in table
    assert "train accuracy at t = 2" in table


def test_table_without_test_points_has_no_test_columns():
    problem = make_problem(4, 0)
    table = str(nth.compare(make_network(4, 1), problem, TS, [2], method="dense"))
    assert "train" in table
    assert "test" not in table


def test_figure_shows_every_curve(scalar):
    axes = scalar.plot().axes
    assert [(axis.get_title(), axis.get_ylabel()) for axis in axes] == [
        ("training loss", "loss"),
        ("training points (dashed: estimate)", "RMS error of outputs"),
        ("test points (dashed: estimate)", "RMS error of outputs"),
        ("test points", "accuracy (%)"),
    ]
    assert len(axes[0].lines) == 3  # the network and two levels
    error, estimate = (line.get_ydata() for line in axes[2].lines[2:4])
    np.testing.assert_allclose(error, scalar.error(3, "test")[1:])
    np.testing.assert_allclose(estimate, scalar.error_estimate(3, "test")[1:])
    assert all(axis.get_xlabel() for axis in axes)


def test_data_set_is_labeled(scalar, labeled):
    data = scalar.to_xarray()
    level = data.test.sel(model="p=3", time=2.0)
    np.testing.assert_array_equal(level, scalar.solutions[3].test[-1])
    assert data.test.dims == ("model", "time", "test_point")
    assert float(data.valid_until.sel(model="truth")) == jnp.inf
    np.testing.assert_array_equal(
        data.test_accuracy.sel(model="truth"), scalar.accuracy("truth")
    )
    classes = labeled.to_xarray()
    assert classes.train.dims[-1] == "output_0"
    np.testing.assert_array_equal(data.x_test, scalar.problem.x_test)
    np.testing.assert_array_equal(data.y_test, [1.0, -1.0, 1.0])
    # The coordinates of a point are selected with it.
    near = classes.isel(train_point=[2, 0])
    np.testing.assert_array_equal(
        near.x_train, labeled.problem.x_train[np.array([2, 0])]
    )
    np.testing.assert_array_equal(near.y_train, [0, 0])


def test_tables_hold_the_arrays(scalar, labeled):
    for comparison, index in ((scalar, ["point"]), (labeled, ["point", "output"])):
        solution = comparison.solutions[2]
        table = solution.to_dataframe()
        for points in ("train", "test"):
            rows = table[table.points == points].set_index(["time", *index])
            values = rows.value.to_xarray()  # one axis for each column of the index
            np.testing.assert_array_equal(values, getattr(solution, points))
        errors = np.reshape(table.error_estimate, (len(TS), -1))
        rms = np.sqrt(np.mean(errors**2, axis=1))
        np.testing.assert_allclose(rms, solution.error_estimate, atol=1e-12)
    with pytest.raises(ValueError, match=r"batch, with times of shape \(1, 3\)"):
        jax.tree.map(lambda leaf: leaf[None], scalar.truth).to_dataframe()


def test_table_of_a_comparison(scalar, labeled):
    table = scalar.to_dataframe().set_index(["model", "time"])
    assert list(table.loc["truth"].test_error) == [0.0, 0.0, 0.0]
    for p in (2, 3):
        level = table.loc[f"p={p}"]
        np.testing.assert_array_equal(level.loss, scalar.solutions[p].loss)
        np.testing.assert_array_equal(level.train_error, scalar.error(p, "train"))
        np.testing.assert_array_equal(level.test_error, scalar.error(p))
        np.testing.assert_array_equal(level.error_estimate, scalar.error_estimate(p))
        np.testing.assert_array_equal(level.test_accuracy, scalar.accuracy(p))
    assert list(labeled.to_dataframe().model.unique()) == ["truth", "p=2"]


def test_tables_need_pandas(scalar, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for result in (scalar, scalar.truth):
        with pytest.raises(ImportError, match=r"pip install 'neural-.*\[examples\]'"):
            result.to_dataframe()


# ---------------------------------------------------------------- what is compared


@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")  # of a narrow network
def test_times_are_not_rounded_to_integer_inputs():
    """Times are in the dtype of the parameters, not in that of the inputs."""
    x = np.arange(4)[:, None]
    problem = nth.Problem(x, np.sin(np.arange(4.0)))
    network: Any = nth.from_apply(
        lambda w, x: jnp.sum(jnp.tanh(x[0].astype(w.dtype) * w)), jnp.array([0.3, -0.7])
    )
    ts = np.array([0.0, 0.25, 0.5])
    level = nth.solve(network, problem, ts, order=2, method="dense")
    assert level.ts.dtype == jnp.float64
    np.testing.assert_array_equal(level.ts, ts)
    # The constant kernel, by its exponential.
    w, y = np.array([0.3, -0.7]), np.sin(np.arange(4.0))
    f, slope = np.tanh(x * w).sum(axis=1), x / np.cosh(x * w) ** 2
    values, vectors = np.linalg.eigh(slope @ slope.T)
    expected = [
        y + vectors @ (np.exp(-values * t / 4) * (vectors.T @ (f - y))) for t in ts
    ]
    np.testing.assert_allclose(level.train, expected, atol=1e-6)
    both = nth.compare(network, problem, ts, (2,), method="dense")
    np.testing.assert_array_equal(both.solutions[2].train, level.train)


def test_a_model_with_equal_rates_and_decay_is_compared():
    """Rates are compared by value, and no decay equals a decay of 0."""
    network, problem = make_network(3, 1), make_problem()
    rates = jax.tree.map(lambda leaf: 2.0, network)
    flow = nth.GradientFlow(network, problem, learning_rates=rates, weight_decay=0.1)
    options: Any = {"learning_rates": 2.0, "weight_decay": 0.1}
    both = nth.compare(network, problem, TS, (2,), models={"same": flow}, **options)
    np.testing.assert_array_equal(both.models["same"].train, both.truth.train)
    linear = nth.TaylorizedFlow(network, problem, degree=1)
    with pytest.raises(ValueError, match="so leave out weight_decay, or the model"):
        nth.compare(
            network, problem, TS, (2,), models={"linear": linear}, weight_decay=0.1
        )


def test_gradient_of_the_penalty_is_the_weight_decay():
    """λ/2 ‖θ‖² over trained arrays: its gradient is the decay of the vector field."""
    network, problem = make_network(3, 1), make_problem()
    flow, plain = (
        nth.GradientFlow(network, problem, weight_decay=decay) for decay in (0.5, 0.0)
    )
    theta = flow.initial_state()
    squares = sum(float(np.sum(np.asarray(w) ** 2)) for w in network.weights)
    np.testing.assert_allclose(flow.penalty(theta), 0.25 * squares)
    assert plain.penalty(theta) == 0
    slope = jax.grad(flow.penalty)(theta)
    now = jnp.zeros(())
    with_decay, without = (f.vector_field(now, theta, None) for f in (flow, plain))
    for a, b, s in zip(
        *map(jax.tree.leaves, (with_decay, without, slope)), strict=True
    ):
        np.testing.assert_allclose(a, b - s, atol=1e-14)


@pytest.mark.parametrize("discrete", [False, True])
def test_labels_of_test_points_are_checked(discrete):
    loss = nth.SoftmaxCrossEntropy()
    problem = nth.Problem(np.eye(3), [0, 1, 0], np.eye(3)[:1], loss=loss)
    network = make_network(3, 1, outputs=2)

    def in_steps(network, problem, steps, orders, **options):
        optimizer = optax.sgd(0.1)
        return nth.compare_discrete(
            network, problem, steps, optimizer, orders, **options
        )

    compare: Any = in_steps if discrete else nth.compare
    for y_test, message in (
        ([5], "y_test has labels of 2"),
        ([-1], "y_test has labels b"),
    ):
        arguments: Any = (network, problem, np.array([1]))
        with pytest.raises(ValueError, match=message):
            compare(*arguments, (2,), y_test=y_test)


# ---------------------------------------------------------------- other predictions


def test_predictions_in_closed_form_are_compared(scalar):
    """Level 2 integrated and in closed form have the same error."""
    network, problem = make_network(4, 1), make_problem(4, 3)
    kernels = nth.kernels(network, problem, order=4)
    models = {
        "closed": nth.closed_form(kernels, problem, TS),
        "perturbative": nth.perturbative(kernels, problem, TS),
    }
    comparison = nth.compare(network, problem, TS, [2], models=models)
    np.testing.assert_allclose(
        comparison.error("closed"), comparison.error(2), atol=1e-7
    )
    assert comparison.error("perturbative")[-1] < comparison.error("closed")[-1]
    assert comparison.valid_until("closed") == np.inf
    assert "closed" in str(comparison)
    assert "perturbative" in comparison.to_xarray().model
    assert comparison.plot().axes


@pytest.mark.parametrize(
    ("ts", "points", "message"),
    [
        ([0.0, 0.5, 3.0], 4, r"has the times"),
        ([0.0, 0.5], 4, r"\.ts has shape"),
        (TS, 3, r"\.train has shape"),
    ],
)
def test_predictions_of_another_problem_are_refused(ts, points, message):
    network, problem = make_network(4, 1), make_problem(points, 3)
    other = nth.closed_form(nth.kernels(network, problem, order=2), problem, ts)
    with pytest.raises(ValueError, match=r"models\['closed'\].*" + message):
        nth.compare(network, make_problem(4, 3), TS, [2], models={"closed": other})


# ---------------------------------------------------------------- short descriptions


def test_descriptions_are_short(scalar):
    solution = scalar.solutions[2]
    assert repr(solution).startswith(
        "Solution(level-2 hierarchy, method dense, 3 times"
    )
    assert repr(solution).endswith("successful)")
    assert "last test errors p = 2: " in repr(scalar)
    assert len(repr(scalar)) < 200


def test_traced_and_batched_solutions_show_their_shapes():
    problem, network = make_problem(4, 3), make_network(4, 1)

    def solve(y):
        solution = nth.solve(
            network, nth.Problem(problem.x_train, y), TS, order=2, method="dense"
        )
        assert "train=f64[3,4]" in repr(solution)
        return solution

    batch = jax.vmap(solve)(jnp.stack([problem.y_train] * 2))
    assert "train=f64[2,3,4]" in repr(batch)
