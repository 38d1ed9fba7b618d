"""The bounds of K⁽ʳ⁾ and of the training error beside networks and solves."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth

N, TIME, STEPS = 2, 4.0, 16
OPTIONS: Any = {"depth": 1, "sigma_w": 1.5}
WIDTHS = (128, 1024)
NAMES = (2, 3, 4, "size 2", "size 3", "size 4", "rate")


def train(network: Any, problem: nth.Problem) -> Any:
    """Gradient descent to `TIME`."""

    def loss(network: Any) -> jax.Array:
        outputs = jax.vmap(network)(problem.x_train)
        return jnp.mean((outputs - problem.y_train) ** 2) / 2

    def step(_: Any, network: Any) -> Any:
        gradient = eqx.filter_grad(loss)(network)
        return jax.tree.map(lambda w, g: w - TIME / STEPS * g, network, gradient)

    return jax.lax.fori_loop(0, STEPS, step, network)


@pytest.fixture(scope="module")
def measured() -> dict[int, dict[Any, float]]:
    """Means over 200 networks of each width of the largest entries."""
    problem = make_problem(N, 0)
    limit = nth.infinite.corrections(problem.x, width=1, **OPTIONS)
    rows = {}
    for width in WIDTHS:

        def of_key(key: jax.Array, width: int = width) -> list[jax.Array]:
            network = nth.MLP(3, width, key=key, **OPTIONS)
            start, end = (
                nth.kernels(net, problem, order=4, progress=False)
                for net in (network, train(network, problem))
            )
            deviations = start[2] - limit.ntk, start[3], start[4] - limit.fourth / width
            # The NTK changes at the rate −K⁽³⁾ · g.
            rate = end[3] @ ((end[1] - problem.y_train) / N)
            parts = [*deviations, end[2], end[3], end[4], rate]
            return [jnp.max(jnp.abs(part)) for part in parts]

        keys = jax.random.split(jax.random.key(width), 200)
        run = jax.jit(lambda keys: jax.lax.map(of_key, keys, batch_size=50))
        means = [float(jnp.mean(part)) for part in run(keys)]
        rows[width] = dict(zip(NAMES, means, strict=True))
    return rows


def bounds(width: int) -> nth.theory.Bounds:
    problem = make_problem(N, 0)
    return nth.theory.bounds(nth.infinite.kernels(problem.x, **OPTIONS), width)


def growth(measured: dict[int, dict[Any, float]], name: Any, bound: Any) -> float:
    """The exponent in the width of what is measured, divided by its bound."""
    ratios = [measured[w][name] / bound(bounds(w)) for w in WIDTHS]
    return float(np.log(ratios[1] / ratios[0]) / np.log(WIDTHS[1] / WIDTHS[0]))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_deviations_at_initialization(measured, order):
    """Eq. 11: sharp for each order, with 𝒦⁽⁴⁾ from `infinite.corrections`."""
    exponent = growth(measured, order, lambda b: b.kernel_deviation(order))
    assert abs(exponent) < 0.1, exponent


@pytest.mark.parametrize(
    ("order", "least", "most"), [(2, -0.1, 0.1), (3, -0.7, -0.3), (4, -0.25, 0.05)]
)
def test_sizes_after_training(measured, order, least, most):
    """Eq. 12: sharp for even r, up to the deviations of eq. 11, which are large for
    K⁽⁴⁾; for odd r the limit 𝒦⁽ʳ⁾ is 0, and the size falls as 1/m^{(r−1)/2}."""
    exponent = growth(measured, f"size {order}", lambda b: b.kernel_size(order))
    assert least < exponent < most


def test_rate_of_the_ntk(measured):
    """Corollary 2.4: 1/m."""
    exponent = growth(measured, "rate", lambda b: b.kernel_rate(TIME))
    assert abs(exponent) < 0.1, exponent


def test_decay_of_the_training_error():
    """Corollary 2.5: level 2 along the slowest mode decays four times as fast, and a
    trained network stays below the curve."""
    problem = make_problem(3, 0)
    network = make_network(width=64, depth=1)
    formed = nth.kernels(network, problem, order=2)
    modes = nth.spectrum(formed).modes
    targets = formed[1] - modes[-1]  # the residual is the slowest mode
    slow = nth.Problem(problem.x_train, targets)
    result = nth.theory.bounds(formed, 64)
    ts = [0.0, 1.0, 20.0]
    residual = nth.closed_form(formed, slow, ts).train - targets[None]
    squares = np.sum(np.asarray(residual) ** 2, axis=1)
    curve = np.array([result.training_error(t) for t in ts]) / 3
    np.testing.assert_allclose(squares, curve**4, rtol=1e-9)
    path = nth.gradient_flow(network, problem, jnp.array(ts))
    errors = np.sum((np.asarray(path.train) - np.asarray(problem.y_train)) ** 2, axis=1)
    assert np.all(errors[1:] < errors[0] * curve[1:])
    # The paper's time, up to the constants of ≍: half of that of the curve.
    twice = 2 * result.time(0.01)
    np.testing.assert_allclose(result.training_error(twice), 0.01, rtol=1e-9)


def test_arguments_and_horizon():
    result = bounds(10**6)
    assert result.horizon == pytest.approx(1e6**0.4)
    assert result.window <= result.horizon
    assert result.kernel_deviation(5) == pytest.approx(1e-12)
    with pytest.raises(ValueError, match="order must be at most 5, the largest_order"):
        result.kernel_size(6)
    with pytest.raises(ValueError, match="t must be finite and at least 0"):
        result.kernel_rate(-1.0)
    with_log = nth.theory.bounds(
        nth.infinite.kernels(make_problem(N, 0).x, **OPTIONS), 100, log_power=2.0
    )
    assert with_log.kernel_rate(1.0) == pytest.approx(2 * np.log(100) ** 2 / 100)
