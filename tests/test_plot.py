"""Figures of results: what they draw, where, and what they refuse."""

import jax
import jax.numpy as jnp
import jaxtyping
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_network, make_problem
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import nth

TS = np.array([0.0, 0.5, 2.0])


@pytest.fixture(scope="module")
def solution():
    network, problem = make_network(4, 1), make_problem(4, 3)
    return nth.solve(network, problem, TS, order=3, method="dense")


@pytest.fixture(scope="module")
def pair():
    network, problem = make_network(4, 1, outputs=2), make_problem(4, 3, outputs=2)
    return nth.solve(network, problem, TS, order=3, method="dense")


def limits(band) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit of a band at each time."""
    corners = band.get_paths()[0].vertices
    at = [corners[np.isclose(corners[:, 0], t), 1] for t in TS]
    return np.array([v.min() for v in at]), np.array([v.max() for v in at])


def test_outputs_with_their_estimated_errors(solution):
    (axis,) = solution.plot().axes
    assert len(axis.lines) == 3  # the test points
    for i, line in enumerate(axis.lines):
        np.testing.assert_array_equal(line.get_ydata(), solution.test[:, i])
    errors = np.abs(solution.output_errors[:, 4 + 1])
    low, high = limits(axis.collections[1])
    np.testing.assert_allclose(low, solution.test[:, 1] - errors, atol=1e-12)
    np.testing.assert_allclose(high, solution.test[:, 1] + errors, atol=1e-12)
    assert axis.get_xlabel() == "time $t$"


def test_several_outputs_have_a_panel_for_each_point(pair):
    axes = pair.plot("train", indices=[3, 0]).axes
    assert [axis.get_title() for axis in axes] == ["train point 3", "train point 0"]
    for axis, i in zip(axes, [3, 0], strict=True):
        for k, line in enumerate(axis.lines):
            np.testing.assert_array_equal(line.get_ydata(), pair.train[:, i, k])


def test_an_ensemble_is_shown_by_its_quantiles():
    problem = make_problem(4, 2)
    keys = jax.random.split(jax.random.key(0), 5)

    def member(key):
        return nth.solve(nth.MLP(3, 4, 1, key=key), problem, TS, order=2)

    (axis,) = jax.vmap(member)(keys).plot(indices=[1]).axes
    each = np.stack([member(key).test[:, 1] for key in keys])
    middle = np.asarray(axis.lines[0].get_ydata())
    np.testing.assert_allclose(middle, np.median(each, axis=0), atol=1e-6)
    low, high = limits(axis.collections[0])
    np.testing.assert_allclose(low, np.percentile(each, 5, axis=0), atol=1e-6)
    np.testing.assert_allclose(high, np.percentile(each, 95, axis=0), atol=1e-6)


def test_without_an_estimate_the_band_is_empty():
    truth = nth.gradient_flow(make_network(4, 1), make_problem(4, 0), TS)
    (axis,) = truth.plot().axes
    low, high = limits(axis.collections[0])
    np.testing.assert_array_equal(low, high)
    legend = axis.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "no error estimate"


def test_only_times_spaced_logarithmically_have_a_logarithmic_axis():
    network, problem = make_network(4, 1), make_problem(4, 2)
    scales = []
    for ts in (np.geomspace(0.1, 10, 5), np.linspace(0, 10, 21)):
        level = nth.solve(network, problem, ts, order=2, method="dense")
        scales.append(level.plot().axes[0].get_xscale())
    assert scales == ["log", "linear"]


def test_steps_are_named():
    optax = pytest.importorskip("optax")
    run = nth.solve_discrete(
        make_network(4, 1), make_problem(4, 2), 2, optax.sgd(0.1), order=2
    )
    assert run.plot().axes[0].get_xlabel() == "step"


def test_given_axes_are_drawn_on(solution):
    figure, axes = plt.subplots(1, 2)
    assert solution.plot(axes=axes[1]) is figure
    assert not axes[0].lines
    assert axes[1].lines
    plt.close(figure)


def test_a_comparison_draws_on_given_axes():
    comparison = nth.compare(
        make_network(4, 1), make_problem(4, 0), TS, [2], method="dense"
    )
    figure, axes = plt.subplots(3, 1)
    assert comparison.plot(axes) is figure
    np.testing.assert_array_equal(
        axes[0].lines[1].get_ydata(), comparison.solutions[2].loss
    )
    with pytest.raises(ValueError, match="axes must be 3 matplotlib Axes"):
        comparison.plot(axes[:2])
    plt.close(figure)


def test_a_level_has_one_color_in_every_comparison():
    network, problem = make_network(4, 1), make_problem(4, 0)
    colors = []
    for orders in ((2, 3), (3,)):
        compared = nth.compare(network, problem, TS, orders, method="dense")
        colors.append(to_rgba(compared.plot().axes[0].lines[-1].get_color()))
    assert colors[0] == colors[1] == to_rgba(nth.plot.level_color(3))


def test_kernels_and_spectra():
    network, problem = make_network(4, 1), make_problem(4, 2)
    level = nth.MatrixFreeHierarchy(network, problem, order=3)
    path = nth.kernel_along(level, TS)
    figure = path.plot(indices=[2])
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(image, path.ntk[2, :4])
    image = path.plot(indices=[2], change=True).axes[0].images[0].get_array()
    np.testing.assert_array_equal(image, (path.ntk[2] - path.ntk[0])[:4])
    assert len(path.plot().axes) == 4  # three times and a color bar
    spectrum = nth.spectrum_along(level, TS, count=2)
    (axis,) = spectrum.plot().axes
    for i, line in enumerate(axis.lines):
        np.testing.assert_array_equal(line.get_ydata(), spectrum.eigenvalues[:, i])


def test_a_sweep_is_shown_with_its_law():
    def measure(width, key):
        noise = 1 + 0.1 * jax.random.normal(key)
        return {"square": noise / width**2, "zero": 0.0 * noise}

    sweep = nth.scaling.sweep(measure, [8, 32, 16], 6, key=jax.random.key(0))
    (axis,) = sweep.plot().axes
    law, medians = axis.lines[0], axis.lines[1]
    slope = np.diff(np.log(law.get_ydata())) / np.diff(np.log(law.get_xdata()))
    np.testing.assert_allclose(slope, -2, atol=0.2)
    np.testing.assert_array_equal(medians.get_xdata(), [8, 16, 32])
    at_16 = np.asarray(medians.get_ydata())[1]
    assert at_16 == np.median(sweep.values["square"][2])
    assert len(axis.lines) == 3  # zeros have no law


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": "tset"}, "points must be"),
        ({"indices": []}, "indices must be at least one index from 0 to 2"),
        ({"indices": [3]}, "indices must be at least one index from 0 to 2"),
        ({"indices": 1}, "indices must be at least one index from 0 to 2"),
        ({"indices": [-1]}, "indices must be at least 0"),
        ({"axes": []}, "axes must be one matplotlib Axes"),
        ({"axes": Figure()}, "axes must be one matplotlib Axes"),
    ],
)
def test_what_cannot_be_drawn(solution, options, message, monkeypatch):
    """Without the types that the tests check: a user has no such check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        solution.plot(**options)


def test_no_figure_under_jit(solution):
    with pytest.raises(ValueError, match=r"Solution\.plot needs one"):
        jax.jit(lambda s: s.plot() and jnp.zeros(()))(solution)


def test_colors_of_levels():
    assert len({nth.plot.level_color(p) for p in range(2, 7)}) == 5
    with pytest.raises(ValueError, match="order must be at least 2"):
        nth.plot.level_color(1)
