"""Decision regions and the animation of a kernel."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

import nth

X = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
PROBLEM = nth.Problem(X, np.array([-1.0, 1.0, 1.0]))
CLASSES = nth.Problem(X, np.array([0, 1, 2]), loss=nth.SoftmaxCrossEntropy())


def test_the_sign_of_a_scalar_output() -> None:
    """The boundary of f = x₁ − 0.3 is the vertical line x₁ = 0.3."""
    figure: Any = nth.plot.decision_regions(
        lambda x: x[:, 0] - 0.3, PROBLEM, resolution=30
    )
    axis, bar = figure.axes
    values, boundary, points = axis.collections
    grid = np.asarray(values.get_array()).reshape(30, 30)
    np.testing.assert_allclose(grid[0], np.linspace(-0.15, 1.15, 30) - 0.3)
    np.testing.assert_allclose(grid, grid[:1].repeat(30, axis=0))
    assert values.norm.vmin == -values.norm.vmax
    (line,) = boundary.get_paths()
    np.testing.assert_allclose(line.vertices[:, 0], 0.3)
    assert np.ptp(line.vertices[:, 1]) == pytest.approx(2 * 1.3)
    np.testing.assert_array_equal(points.get_offsets(), X)
    blue, red, same = points.get_facecolors()
    assert tuple(red) == tuple(same) != tuple(blue)
    assert bar.get_ylabel() == "output"


def test_the_largest_of_several_outputs() -> None:
    """Three classes, whose regions are where their input is the largest."""

    def predict(x: Any) -> Any:
        return jnp.stack([0.5 - 0 * x[:, 0], x[:, 0], x[:, 1]], axis=1)

    figure: Any = nth.plot.decision_regions(predict, CLASSES, resolution=20)
    values, points = figure.axes[0].collections
    grid = np.asarray(values.get_array()).reshape(20, 20)
    assert (grid[0, 0], grid[0, -1], grid[-1, 0]) == (0, 1, 2)
    # A point that is classified correctly has the color of its region.
    for point, label in zip(points.get_facecolors(), range(3), strict=True):
        assert tuple(point) == to_rgba(values.cmap(values.norm(label))[:3])


@pytest.mark.parametrize(
    ("message", "predict", "problem"),
    [
        (r"shape \(n, 2\); got \(3, 1\)", lambda x: x, nth.Problem(X[:, :1], X[:, 0])),
        (r"predict must return .* got \(\)", lambda x: x[0, 0], PROBLEM),
        (r"got \(2500, 2, 1\)", lambda x: x[..., None], PROBLEM),
        ("predict must be a function", None, PROBLEM),
        ("problem must be a Problem", lambda x: x, X),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_has_no_regions(message: str, predict: Any, problem: Any) -> None:
    with pytest.raises(ValueError, match=message):
        nth.plot.decision_regions(predict, problem, resolution=50)


def path(ts: Any, size: int = 2) -> nth.KernelPath:
    """The kernel (1 + t) times the identity."""
    ts, zeros = jnp.asarray(ts), jnp.zeros((len(ts), size))
    names = ("loss", "error_estimate", "error_share")
    fields: dict[str, Any] = dict.fromkeys(names, zeros[:, 0])
    fields |= {"valid_until": ts[-1], "result": nth.RESULTS.successful}
    fields |= {"state": (), "counts": {}, "label": "network", "method": "dense"}
    solution = nth.Solution(ts=ts, train=zeros, test=zeros[:, :0], **fields)
    kernel = jnp.eye(size)
    return nth.KernelPath(kernel, jnp.stack([(1 + t) * kernel for t in ts]), solution)


def test_each_frame_shows_the_kernel_at_its_time(tmp_path: Path) -> None:
    ts = [0.0, 1.0, 3.0]
    paths = {"network": path(ts), "level 4": path(ts)}
    animation = nth.plot.animate_kernel(paths, change=True, interval=200)
    file = tmp_path / "kernel.gif"
    animation.save(file, writer="pillow", dpi=40)
    with Image.open(file) as image:
        assert image.n_frames == 3  # pyright: ignore[reportAttributeAccessIssue]
        assert image.info["duration"] == 200
    figure: Any = animation._fig  # pyright: ignore[reportAttributeAccessIssue]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["network", "level 4"]
    (image,) = figure.axes[0].images
    for frame, t in enumerate(ts):
        animation._func(frame)  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_array_equal(image.get_array(), t * np.eye(2))
        assert figure.get_suptitle() == f"$t$ = {t:g}"
    assert image.norm.vmax == 3.0 == -image.norm.vmin


@pytest.mark.usefixtures("without_type_checks")
def test_paths_that_do_not_match() -> None:
    animate: Any = nth.plot.animate_kernel
    first = path([0.0, 1.0])
    for other in (path([0.0, 2.0]), path([0.0, 1.0], 3)):
        with pytest.raises(ValueError, match=r"paths\['other'\] has other times"):
            animate({"first": first, "other": other})
    for wrong in ({}, first.ntk):
        with pytest.raises(ValueError, match=r"paths must be an nth\.KernelPath"):
            animate(wrong)
    with pytest.raises(ValueError, match=r"under jax\.jit"):
        jax.jit(lambda t: animate(path(t)))(jnp.array([0.0, 1.0]))
