"""The closed form of level 2, against integration and the matrix exponential."""

from decimal import Decimal, localcontext
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from conftest import make_network, make_problem

import nth
from nth._analytic.decay_integrals import nested_decay

TS = np.array([0.0, 0.3, 2.0, 40.0])


def corner(rates, t):
    """`nested_decay` as the corner of exp(t·B), with −rates on the diagonal of B and 1
    above it (Opitz), by scaling and squaring with 60 digits."""
    size = len(rates)

    def product(left, right):
        total = [[Decimal(0)] * size for _ in range(size)]
        for i in range(size):
            for j in range(i, size):
                terms = [left[i][s] * right[s][j] for s in range(i, j + 1)]
                total[i][j] = sum(terms, Decimal(0))
        return total

    with localcontext(prec=60):
        halvings = 2 + int(np.ceil(np.log2(max(t * max(rates), t, 1))))
        step = Decimal(t) / 2**halvings
        matrix = [[Decimal(0)] * size for _ in range(size)]
        for i, rate in enumerate(rates):
            matrix[i][i] = -Decimal(rate) * step
            if i + 1 < size:
                matrix[i][i + 1] = step
        power = total = [[Decimal(i == j) for j in range(size)] for i in range(size)]
        for k in range(1, 40):
            power = [[x / k for x in row] for row in product(power, matrix)]
            total = [
                [x + y for x, y in zip(*rows, strict=True)]
                for rows in zip(total, power, strict=True)
            ]
        for _ in range(halvings):
            total = product(total, total)
        return float(total[0][-1])


@pytest.mark.parametrize("size", [2, 5])
def test_nested_decay_is_accurate_to_rounding_error(size):
    """Also if rates coincide, nearly coincide, are zero, or differ by 10 decades."""
    rng = np.random.default_rng(size)
    rates = 10 ** rng.uniform(-6, 1.5, (60, size))
    rates[::3, 0] = 0
    rates[1::3, 1] = rates[1::3, 0] * (1 + 10 ** rng.uniform(-16, 0, 20))
    rates[::5] = rates[::5, :1]
    times = 10 ** rng.uniform(-3, 1, 60)
    decay = jax.jit(jax.vmap(lambda row, t: nested_decay(*row, t=t)))
    actual = decay(jnp.asarray(rates), jnp.asarray(times))
    expected = [
        corner(list(map(float, row)), float(t))
        for row, t in zip(rates, times, strict=True)
    ]
    # e^{−at} in floating point has a relative error of at·2⁻⁵³: 300·1e-16 here.
    np.testing.assert_allclose(actual, expected, rtol=3e-14)


def test_closed_form_equals_the_integrated_level_2():
    """With several outputs; the next test has one."""
    problem = make_problem(4, 2, outputs=2)
    kernels = nth.kernels(make_network(outputs=2), problem, order=2)
    closed = nth.closed_form(kernels, problem, TS)
    level = nth.integrate(nth.DenseHierarchy(kernels, problem), TS)
    for name in ("train", "test", "loss"):
        expected = getattr(level, name)
        np.testing.assert_allclose(getattr(closed, name), expected, atol=2e-7)


def test_closed_form_equals_the_matrix_exponential(problem):
    kernels = nth.kernels(make_network(), problem, order=2)
    f, k = np.asarray(kernels[1]), np.asarray(kernels[2])
    closed = nth.closed_form(kernels, problem, TS)
    for t, train, test in zip(TS, closed.train, closed.test, strict=True):
        decay = scipy.linalg.expm(-k[:4] * t / 4)
        residual = f[:4] - np.asarray(problem.y_train)
        np.testing.assert_allclose(train, f[:4] - residual + decay @ residual)
        moved = k[4:] @ np.linalg.solve(k[:4], (np.eye(4) - decay) @ residual)
        np.testing.assert_allclose(test, f[4:] - moved, rtol=1e-9)


def test_the_end_of_training_is_kernel_regression(problem):
    kernels = nth.kernels(make_network(), problem, order=2)
    f, k = np.asarray(kernels[1]), np.asarray(kernels[2])
    closed = nth.closed_form(kernels, problem, [0.0, 1e9, jnp.inf])
    y = np.asarray(problem.y_train)
    np.testing.assert_allclose(closed.train[-1], y, rtol=0, atol=1e-15)
    expected = f[4:] + k[4:] @ np.linalg.solve(k[:4], y - f[:4])
    np.testing.assert_allclose(closed.test[-1], expected, rtol=1e-9)
    np.testing.assert_allclose(closed.test[1], expected, rtol=1e-9)


def repeated_point():
    """A problem with a repeated point of two targets, so that its NTK is singular."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))
    x[1] = x[0]
    return nth.Problem(x[:3], np.array([1.0, 3.0, -1.0]), x[3:])


def test_outputs_are_constant_along_zero_eigenvalues():
    problem = repeated_point()
    kernels = nth.kernels(make_network(), problem, order=2)
    closed = nth.closed_form(kernels, problem, [0.0, 5.0, 1e6, jnp.inf])
    level = nth.integrate(nth.DenseHierarchy(kernels, problem), [0.0, 5.0])
    np.testing.assert_allclose(closed.train[:2], level.train, atol=1e-7)
    np.testing.assert_allclose(closed.test[:2], level.test, atol=1e-7)
    # The repeated point converges to the mean of its targets.
    np.testing.assert_allclose(closed.train[-1], [2.0, 2.0, -1.0], atol=1e-12)
    once = nth.Problem(problem.x_train[1:], np.array([2.0, -1.0]), problem.x_test)
    fitted = nth.closed_form(
        nth.kernels(make_network(), once, order=2), once, [jnp.inf]
    )
    np.testing.assert_allclose(closed.test[-1], fitted.test[0], atol=1e-9)


@pytest.mark.parametrize("outputs", [None, 2])
def test_displacement_is_that_of_the_linearized_network(outputs):
    problem = make_problem(4, 2, outputs=outputs)
    network = make_network(outputs=outputs)
    moved = nth.displacement(network, problem, [*TS, jnp.inf])
    linear = nth.MatrixFreeHierarchy(network, problem, order=2)
    (expected,) = nth.integrate(linear, TS[:3]).state.steps
    for leaf, end in zip(
        jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True
    ):
        assert leaf.shape == (5, *end.shape)
        np.testing.assert_allclose(leaf[2], end, atol=2e-7)
        np.testing.assert_array_equal(leaf[0], 0)
    # J(θ − θ₀) is the change of the outputs, also at the end of training.
    params, frozen = eqx.partition(network, eqx.is_inexact_array)
    closed = nth.closed_form(
        nth.kernels(network, problem, order=2), problem, [*TS, jnp.inf]
    )

    def outputs_of(params):
        return jax.vmap(eqx.combine(params, frozen))(problem.x_test)

    for i in (3, 4):
        last = jax.tree.map(lambda leaf, i=i: leaf[i], moved)
        start, velocity = jax.jvp(outputs_of, (params,), (last,))
        np.testing.assert_allclose(start + velocity, closed.test[i], atol=1e-8)


def test_derivatives_where_eigenvalues_coincide():
    """Two independent outputs with one kernel: each eigenvalue of K is twofold."""
    problem = make_problem(3, 1, outputs=2)
    formed = nth.kernels(make_network(outputs=2), problem, order=2)
    block = formed[2][:, 0, :, 0]
    kernel = block[:, None, :, None] * jnp.eye(2)[None, :, None, :]
    direction = formed[2] - kernel  # couples the outputs

    @jax.jit
    def outputs(step, scale, time):
        moved = nth.Kernels((formed[1], kernel + step * direction))
        scaled = nth.Problem(problem.x_train, scale * problem.y_train, problem.x_test)
        path = nth.closed_form(moved, scaled, jnp.stack([time, 2 * time]))
        return jnp.concatenate([path.train, path.test], axis=1)

    point = (jnp.asarray(0.0), jnp.asarray(1.0), jnp.asarray(3.0))
    for k in range(3):
        tangent = tuple(jnp.asarray(float(i == k)) for i in range(3))
        slope = jax.jvp(outputs, point, tangent)[1]
        h = 1e-5
        up, down = (
            outputs(*(p + s * h * d for p, d in zip(point, tangent, strict=True)))
            for s in (1, -1)
        )
        np.testing.assert_allclose(slope, (up - down) / (2 * h), atol=1e-8)
    back = jax.grad(lambda step: jnp.sum(outputs(step, *point[1:]) ** 2))(point[0])
    assert jnp.isfinite(back)


def test_float32_and_vmap_agree_with_float64():
    problem = make_problem(4, 2)
    single = nth.Problem(
        *(
            jnp.asarray(a, jnp.float32)
            for a in (problem.x_train, problem.y_train, problem.x_test)
        )
    )
    network = make_network(dtype=jnp.float32)
    times = jnp.asarray([1.0, 30.0, jnp.inf], jnp.float32)
    solve = partial(nth.closed_form, nth.kernels(network, single, order=2))
    closed = solve(single, times)
    double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), network)
    exact = nth.closed_form(nth.kernels(double, problem, order=2), problem, times)
    assert closed.test.dtype == jnp.float32
    np.testing.assert_allclose(closed.train, exact.train, atol=1e-4)
    np.testing.assert_allclose(closed.test, exact.test, atol=1e-3)

    def scaled(scale):
        targets = scale * single.y_train
        return solve(nth.Problem(single.x_train, targets, single.x_test), times).test

    several = jax.vmap(scaled)(jnp.asarray([1.0, 2.0], jnp.float32))
    np.testing.assert_allclose(several[0], closed.test, rtol=1e-4, atol=1e-5)


def test_errors_name_the_argument(problem):
    kernels = nth.kernels(make_network(), problem, order=2)
    with pytest.raises(ValueError, match="ts must not hold NaN"):
        nth.closed_form(kernels, problem, [0.0, jnp.nan])
    with pytest.raises(ValueError, match="ts must be finite"):
        nth.solve(make_network(), problem, [1.0, jnp.inf], order=2)
    bad = nth.Kernels((kernels[1], kernels[2].at[0, 1].set(jnp.inf)))
    with pytest.raises(ValueError, match="kernels have NaN or infinite entries"):
        nth.closed_form(bad, problem, TS)
    later = jax.jit(lambda kernels: nth.closed_form(kernels, problem, TS).test)
    with pytest.raises(Exception, match="kernels have NaN or infinite entries"):
        jax.block_until_ready(later(bad))
    labels = make_problem(4, 2, loss=nth.LogisticLoss())
    with pytest.raises(ValueError, match=r"closed_form is for nth\.SquaredError"):
        nth.closed_form(kernels, labels, TS)
    with pytest.raises(ValueError, match=r"displacement is for nth\.SquaredError"):
        nth.displacement(make_network(), labels, TS)
