"""The O(1/width) correction, against its differential equations and level 4."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from scipy.integrate import solve_ivp

import nth

TS = np.array([0.0, 0.4, 3.0, 25.0])


def integrated(kernels, problem, ts):
    """The perturbation equations, order by order, integrated by SciPy.

    f = f⁰ + f¹, Θ = Θ₀ + Θ¹ and K⁽³⁾ satisfy dK⁽ʳ⁾/dt = −K⁽ʳ⁺¹⁾·g, in which kernels
    change with g⁰ only, and g¹ multiplies Θ₀ only.
    """
    k = [np.asarray(tensor) for tensor in kernels]
    out = k[0].shape[1:]
    size = problem.y_train.size
    k = [tensor.reshape(-1, *[size] * r) for r, tensor in enumerate(k)]
    y = np.asarray(problem.y_train).reshape(-1)
    m = len(k[0])
    shapes = [(m,), (m,), (m, size), (m, size, size)]
    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def rate(t, state):
        f0, f1, theta1, third = (
            part.reshape(shape)
            for part, shape in zip(np.split(state, cuts), shapes, strict=True)
        )
        g0, g1 = (f0[:size] - y) / problem.n_train, f1[:size] / problem.n_train
        moves = (k[1] @ g0, k[1] @ g1 + theta1 @ g0, third @ g0, k[3] @ g0)
        return -np.concatenate([move.ravel() for move in moves])

    zero = np.zeros(m + m * size)
    start = np.concatenate([k[0], zero, k[2].ravel()])
    path = solve_ivp(rate, (0, ts[-1]), start, "DOP853", ts, rtol=1e-11, atol=1e-12).y.T
    outputs = path[:, :m] + path[:, m : 2 * m]
    ntk = k[1] + path[:, 2 * m : 2 * m + m * size].reshape(-1, m, size)
    return outputs.reshape(len(ts), -1, *out), ntk


@pytest.fixture(scope="module")
def case():
    """A problem, and the kernels of a network on it."""
    problem = make_problem(3, 1)
    return problem, nth.kernels(make_network(), problem, order=4)


@pytest.mark.parametrize("outputs", [None, 2])
def test_perturbative_solves_the_perturbation_equations(outputs):
    problem = make_problem(3, 1, outputs=outputs)
    kernels = nth.kernels(make_network(outputs=outputs), problem, order=4)
    closed = nth.perturbative(kernels, problem, TS)
    expected, ntk = integrated(kernels, problem, TS)
    np.testing.assert_allclose(closed.train, expected[:, :3], atol=1e-10)
    np.testing.assert_allclose(closed.test, expected[:, 3:], atol=1e-10)
    np.testing.assert_allclose(closed.ntk.reshape(ntk.shape), ntk, atol=1e-9)
    # K⁽⁴⁾ is not symmetric in its last slots, whose order matters.
    permuted = nth.Kernels(
        (*kernels.tensors[:3], _swapped(kernels[4], 1 + len(kernels.out_shape)))
    )
    other = nth.perturbative(permuted, problem, TS)
    assert jnp.max(jnp.abs(other.test - closed.test)) > 1e-5


def _swapped(fourth, slot):
    axes = list(range(fourth.ndim))
    axes[2 * slot :] = axes[3 * slot :] + axes[2 * slot : 3 * slot]
    return jnp.transpose(fourth, axes)


def test_coinciding_and_zero_eigenvalues(case):
    """A repeated point gives a zero eigenvalue, a kernel ∝ 1 equal eigenvalues."""
    problem, plain = case
    x = problem.x_train.at[1].set(problem.x_train[0])
    repeated = nth.Problem(x, problem.y_train, problem.x_test)
    equal = jnp.concatenate([jnp.eye(3), plain[2][3:]])
    degenerate = nth.Kernels((plain[1], equal, plain[3], plain[4]))
    singular = nth.kernels(make_network(), repeated, order=4)
    for points, kernels in ((repeated, singular), (problem, degenerate)):
        closed = nth.perturbative(kernels, points, TS)
        expected, ntk = integrated(kernels, points, TS)
        np.testing.assert_allclose(closed.train, expected[:, :3], atol=1e-9)
        np.testing.assert_allclose(closed.test, expected[:, 3:], atol=1e-9)
        np.testing.assert_allclose(closed.ntk, ntk, atol=1e-9)


def test_two_layer_linear_network_has_the_closed_form():
    """One pair of weights per neuron at x = 1: K⁽³⁾ = 4f/N, K⁽⁴⁾ = 4λ/N.

    At y = 0 with r = f e^{−λt}: Θ¹ = −K⁽³⁾ f E₁ + K⁽⁴⁾ f² E₁²/2, E₁ = (1 − e^{−λt})/λ.
    """
    kernels = nth.kernels(
        make_network(5, 1, d=1, activation="linear"),
        problem := nth.Problem(np.ones((1, 1)), np.zeros(1)),
        order=4,
    )
    f, rate = float(kernels[1][0]), float(kernels[2][0, 0])
    third, fourth = 4 * f / 5, 4 * rate / 5
    np.testing.assert_allclose(kernels[3].ravel(), third)
    np.testing.assert_allclose(kernels[4].ravel(), fourth)
    ts = np.array([0.1, 1.0, 4.0])
    decay = np.exp(-rate * ts)
    once = (1 - decay) / rate
    closed = nth.perturbative(kernels, problem, ts)
    moved = -third * f * once + fourth * f**2 * once**2 / 2
    np.testing.assert_allclose(closed.ntk.ravel(), rate + moved, rtol=1e-12)
    # ∫₀ᵗ Θ¹ in closed form.
    linear = (ts - once) / rate
    square = (ts - 2 * once + (1 - decay**2) / (2 * rate)) / rate**2
    stored = -third * f * linear + fourth * f**2 * square / 2
    np.testing.assert_allclose(
        closed.train.ravel(), f * decay * (1 - stored), rtol=1e-11
    )

    def end(target):
        case = nth.Problem(problem.x_train, target)
        return nth.perturbative(kernels, case, ts).train[-1, 0]

    target = jnp.asarray([0.5])
    slope = jax.jit(jax.grad(end))(target)[0]
    ends = [float(end(target + step)) for step in (1e-5, -1e-5)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_differs_from_level_4_by_a_higher_order_in_the_width():
    """The correction scales as 1/width, its distance from level 4 as 1/width²."""
    problem = make_problem(3, 1)
    ts = np.array([2.0, 6.0])

    def median_sizes(width):
        def sizes(key):
            network = nth.MLP(3, width, 1, key=key)
            kernels = nth.kernels(network, problem, order=4)
            closed = nth.perturbative(kernels, problem, ts)
            first = nth.closed_form(kernels, problem, ts)
            dynamics = nth.DenseHierarchy(kernels, problem)
            norm = dynamics.error_norm
            tight = diffrax.PIDController(rtol=1e-10, atol=1e-12, norm=norm)
            level = nth.integrate(dynamics, ts, stepsize_controller=tight)
            return [
                jnp.mean((getattr(closed, a) - getattr(b, a)) ** 2)
                for a in ("train", "test")
                for b in (first, level)
            ]

        keys = jax.random.split(jax.random.key(0), 24)
        squares = jax.jit(jax.vmap(sizes))(keys)
        return [float(jnp.sqrt(jnp.median(square))) for square in squares]

    small, large = median_sizes(64), median_sizes(1024)
    slopes = np.log2(np.array(large) / np.array(small)) / 4
    print("exponents (train: correction, distance; test: same):", slopes)
    np.testing.assert_allclose(slopes, [-1, -2, -1, -2], atol=0.25)


def test_infinite_time_is_the_limit_and_float32_agrees(case):
    problem, kernels = case
    closed = nth.perturbative(kernels, problem, [1e5, jnp.inf])
    np.testing.assert_allclose(closed.train[-1], problem.y_train, atol=1e-12)
    np.testing.assert_allclose(closed.test[0], closed.test[1], rtol=1e-9)
    np.testing.assert_allclose(closed.ntk[0], closed.ntk[1], rtol=1e-9)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), kernels)
    arrays = (problem.x_train, problem.y_train, problem.x_test)
    narrow = nth.Problem(*(jnp.asarray(a, jnp.float32) for a in arrays))
    double = nth.perturbative(kernels, problem, TS)
    single_precision = nth.perturbative(single, narrow, jnp.asarray(TS, jnp.float32))
    assert single_precision.test.dtype == jnp.float32
    np.testing.assert_allclose(single_precision.test, double.test, atol=1e-4)


def test_errors_name_the_argument(case):
    problem, whole = case
    kernels = nth.Kernels(whole.tensors[:3])
    with pytest.raises(ValueError, match=r"go up to r = 3.*takes K\(3\) and K\(4\)"):
        nth.perturbative(kernels, problem, TS)
    with pytest.raises(ValueError, match=r"perturbative is for nth\.SquaredError"):
        nth.perturbative(kernels, make_problem(3, 1, loss=nth.LogisticLoss()), TS)
    bad = nth.Kernels((*whole.tensors[:3], whole[4].at[0, 1, 2, 0].set(jnp.nan)))
    with pytest.raises(ValueError, match="kernels have NaN or infinite entries"):
        nth.perturbative(bad, problem, TS)
    x = problem.x_train.at[1].set(problem.x_train[0])
    repeated = nth.Problem(x, problem.y_train)
    kernels = nth.kernels(make_network(), repeated, order=4)
    with pytest.raises(ValueError, match=r"ts has inf, and the NTK .* is singular"):
        nth.perturbative(kernels, repeated, [1.0, jnp.inf])
