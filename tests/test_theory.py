"""Assumptions, bounds, laziness and the change of the kernel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth
from nth import theory


def test_bounds_of_derivatives_are_the_known_ones():
    """sin: all 1; tanh: 1, 4/(3√3), 2; softplus(a): sup |σ_a⁽ʳ⁾| ∝ a^{r−1}."""
    sine = theory.check_activation("sin")
    np.testing.assert_allclose(sine.bounds, np.ones(5), rtol=1e-4)
    tanh = theory.check_activation("tanh")
    np.testing.assert_allclose(tanh.bounds[:3], [1, 4 / 27**0.5, 2], rtol=1e-3)
    gentle, steep = (
        theory.check_activation(nth.softplus(a), order=1, cells=4000)
        for a in (1.0, 3.0)
    )
    ratios = steep.bounds / gentle.bounds
    np.testing.assert_allclose(ratios, [1, 3, 9], rtol=1e-3)
    assert all(check.holds for check in (sine, tanh, gentle, steep))


def test_activations_that_violate_assumption_2_1():
    relu = theory.check_activation("relu")
    assert all(relu.bounded)
    assert not relu.smooth
    # |x|³ has a kink in its third derivative, and grows.
    cubic = theory.check_activation(lambda x: jnp.abs(x) ** 3)
    assert not cubic.smooth
    assert cubic.bounded == (False, False, True, True, True)
    slow = theory.check_activation(lambda x: x * jnp.log1p(x**2), order=1)
    assert slow.smooth
    assert slow.bounded == (False, True, True)
    assert not slow.holds


def test_singular_values_over_all_sets():
    """k unit vectors with inner products c have singular value √(1 − c) k − 1 times."""
    c = 0.3
    gram = (1 - c) * np.eye(5) + c * np.ones((5, 5))
    x = np.linalg.cholesky(gram)
    check = theory.check_data(x)
    np.testing.assert_allclose(check.smallest, [1] + [np.sqrt(1 - c)] * 4, rtol=1e-9)
    assert all(check.exact)
    assert check.num_evaluated == (5, 10, 10, 5, 1)
    assert check.floor == pytest.approx(np.sqrt(1 - c))
    assert check.holds
    assert check.c == pytest.approx(1)
    parallel = theory.check_data(np.concatenate([x, 2 * x[:1]]))
    assert not parallel.holds
    assert parallel.smallest[1] < 1e-12
    assert parallel.norms == pytest.approx((1, 2))
    assert parallel.c == pytest.approx(0.5)
    flat = theory.check_data(x[:, :2])  # three vectors in a plane
    assert list(flat.smallest[2:]) == [0, 0, 0]
    assert not flat.holds


def test_singular_values_over_sampled_sets():
    x = np.random.default_rng(0).normal(size=(30, 8))
    check = theory.check_data(x, samples=2000)
    assert check.exact == (True, True, False, False, False)
    assert check.num_evaluated == (30, 435, 2000, 2000, 2000)
    exact = min(
        np.linalg.svd(x[list(s)], compute_uv=False)[-1]
        for s in itertools.combinations(range(30), 2)
    )
    assert check.smallest[1] == pytest.approx(exact)
    whole = theory.check_data(x, order=1, samples=5000)  # C(30, 3) = 4060
    assert whole.exact[2]
    assert whole.smallest[2] <= check.smallest[2]


def test_bounds_are_those_of_the_paper(problem):
    formed = nth.kernels(make_network(8, 1), problem, order=2)
    smallest = float(np.linalg.eigvalsh(np.asarray(formed[2][:4]))[0])
    result = theory.bounds(formed, 1e6, largest_order=4)
    assert result.smallest_eigenvalue == pytest.approx(smallest)
    # At the time of Corollary 2.5, n e^{−λt/n} equals ε.
    t = result.time(0.1)
    assert 4 * np.exp(-smallest * t / 4) == pytest.approx(0.1)
    # Eq. 17: the smaller of its terms.
    assert result.window == pytest.approx(min((smallest * 1e6 / 4) ** 0.5, 1e6**0.4))
    # Eqs. 18 and 19 are the bounds of (20) and (21) at long times, up to constants.
    for p in (2, 4):
        ratio = result.error(p, 200.0) / result.error(p, 100.0)
        assert ratio == pytest.approx(2.0**p, rel=0.02)
        narrow = theory.bounds(formed, 1e4)
        assert narrow.error(p, 9.0) / result.error(p, 9.0) == pytest.approx(10.0**p)
        kernel = result.kernel_error(p, 9.0)
        assert kernel == pytest.approx((10 / 9) * (9e-3) ** p, rel=1e-2)
        # The width for an error gives that error.
        wide = theory.bounds(formed, result.width_for(p, 0.01))
        assert wide.error(p, wide.time()) == pytest.approx(0.01)


def test_order_for_is_the_least_level_whose_bound_is_small_enough(problem):
    formed = nth.kernels(make_network(8, 1), problem, order=2)
    result = theory.bounds(formed, 1e6, largest_order=6)
    # Eq. 18 at t = 9 < n/λ, n = 4: 10 · 9^{p-1} · 2 · 9 / 10^{3p}.
    scale = {p: 20 * 9.0**p / 1e3**p for p in (2, 4, 6)}
    for p, bound in scale.items():
        assert result.error(p, 9.0) == pytest.approx(bound)
        assert result.order_for(1.01 * bound, 9.0) == p
    assert result.order_for(scale[4] * 0.99, 9.0) == 6
    message = f"the smallest is {scale[6]:.4g}, of level 6"
    with pytest.raises(ValueError, match=message):
        result.order_for(0.99 * scale[6], 9.0)
    # The cure works: a larger width.
    wider = theory.bounds(formed, 2e6, largest_order=6)
    assert wider.order_for(0.99 * scale[6], 9.0) == 6
    inside = 0.99 * result.window
    assert result.error(result.order_for(0.1, inside), inside) <= 0.1
    with pytest.raises(ValueError, match=f"t must be at most {result.window:.4g}"):
        result.order_for(0.1, 1.01 * result.window)
    with pytest.raises(ValueError, match="order must be at most 6, the largest_order"):
        result.error(8, 1.0)


def test_bounds_beyond_floating_point_are_infinite_or_zero(problem):
    result = theory.bounds(nth.kernels(make_network(8, 1), problem, order=2), 1e6)
    assert result.error(4, 1e200) == np.inf
    assert result.time(10.0) == 0  # n = 4 is below 10 from the start
    assert result.width_for(2, 0.1, 10.0) == 0


def test_the_power_of_the_logarithm_enters_the_bounds(problem):
    formed = nth.kernels(make_network(8, 1), problem, order=2)
    plain, with_log = (theory.bounds(formed, 1e4, log_power=p) for p in (0.0, 2.0))
    m = with_log.width_to_converge(0.1)
    assert m / np.log(m) ** 2 == pytest.approx(plain.width_to_converge(0.1))
    assert with_log.window == pytest.approx(plain.window / np.log(1e4) ** 2)


def test_laziness_equals_brute_force():
    """The spectral norm of the Hessian of w·f, maximized over directions w."""
    problem = make_problem(2, 1)
    network = make_network(3, 1)
    theta, unravel = ravel_pytree(network)

    def outputs(theta):
        return jax.vmap(unravel(theta))(problem.x_train)

    @jax.jit
    def derivatives(theta):
        functions = outputs, jax.jacobian(outputs), jax.hessian(outputs)
        return [function(theta) for function in functions]

    value, jacobian, hessians = map(np.asarray, derivatives(theta))
    angles = np.linspace(0, np.pi, 2001)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    curvatures = np.abs(
        np.linalg.eigvalsh(np.einsum("wa,aij->wij", directions, hessians))
    )
    distance = np.linalg.norm(value - problem.y_train)
    expected = distance * curvatures.max() / np.linalg.norm(jacobian, 2) ** 2
    np.testing.assert_allclose(theory.laziness(network, problem), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_laziness_of_a_linear_network_has_its_closed_form(dtype):
    """f = N^{−1/2} Σ u_i v_i has ‖D²f‖ = N^{−1/2} and ‖Df‖² = (‖u‖² + ‖v‖²)/N."""
    problem = nth.Problem(jnp.ones((1, 1), dtype), jnp.asarray([2.0], dtype))
    network = make_network(16, 1, d=1, activation="linear")
    u, v = (w.ravel().astype(dtype) for w in network.weights)
    network = jax.tree.map(lambda w: w.astype(dtype), network)
    gap, size = jnp.abs(jnp.vdot(u, v) / 4 - 2), jnp.vdot(u, u) + jnp.vdot(v, v)
    result = jax.jit(theory.laziness)(network, problem)
    assert result.dtype == dtype
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(result, gap / 4 / (size / 16), rtol=tolerance)


def test_motion_equals_its_definitions():
    problem = make_problem(3, 1, outputs=2)
    formed = nth.kernels(make_network(4, 1, outputs=2), problem, order=3)
    path = nth.kernel_along(nth.DenseHierarchy(formed, problem), [0.0, 2.0])
    result = theory.motion(path, problem)
    start, (first, last) = map(np.asarray, path.on_train())
    np.testing.assert_allclose(first, start)
    y = np.asarray(problem.y_train).ravel()
    values = np.abs(np.linalg.eigvalsh(last))
    p = values / values.sum()
    norm = np.linalg.norm
    expected = (
        norm(last - start) / norm(start),
        1 - np.sum(last * start) / norm(last) / norm(start),
        np.sum(last * np.outer(y, y)) / norm(last) / norm(np.outer(y, y)),
        np.exp(-np.sum(p * np.log(p))),
    )
    names = ("change", "distance", "alignment", "effective_rank")
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(getattr(result, name)[1], value, 1e-8, err_msg=name)
    np.testing.assert_allclose([result.change[0], result.distance[0]], 0, atol=1e-15)
    with pytest.raises(ValueError, match="alignment needs one target per slot"):
        theory.motion(path, make_problem(3, 1))


def test_errors_name_the_argument(problem):
    with pytest.raises(ValueError, match="radius must be above 0"):
        theory.check_activation("tanh", radius=0.0)
    with pytest.raises(ValueError, match=r"x must have shape \(n, \*in\)"):
        theory.check_data(np.ones(3))
    vector = make_problem(2, 0, outputs=2)
    formed = nth.kernels(make_network(4, 1, outputs=2), vector, order=2)
    with pytest.raises(ValueError, match="the theorems are for scalar networks"):
        theory.bounds(formed, 100)
    scalar = nth.kernels(make_network(4, 1), problem, order=2)
    with pytest.raises(ValueError, match="width must be at least 3"):
        theory.bounds(scalar, 2)
    labels = make_problem(2, 0, outputs=2, loss=nth.SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match=r"laziness is for nth\.SquaredError"):
        theory.laziness(make_network(4, 1, outputs=2), labels)


def test_high_derivatives_are_those_of_sine():
    """Every derivative of sin has the bound 1, up to the 25th at the highest order."""
    np.testing.assert_allclose(
        theory.check_activation("sin", order=12).bounds, np.ones(25), rtol=1e-4
    )
    with pytest.raises(ValueError, match="order must be at most 4 for this activation"):
        theory.check_activation("softplus", order=5)


# ---------------------------------------------------------------- phases of a catapult


def trained(u, v, target, rate, steps):
    """Outputs and NTK of f = u·v/√N under gradient descent, in NumPy."""
    n, outputs, ntk = len(u), [], []
    with np.errstate(all="ignore"):
        for _ in range(steps):
            outputs.append(u @ v / n**0.5)
            ntk.append((u @ u + v @ v) / n)
            step = rate * (outputs[-1] - target) / n**0.5
            u, v = u - step * v, v - step * u
    return np.array(outputs), np.array(ntk)


def phase_of(outputs, ntk, rate):
    if not np.all(np.isfinite(outputs)):
        return "divergent"
    return "lazy" if np.max(rate * ntk) < 2 else "catapult"


@pytest.mark.parametrize("steps", [2, 40])
def test_phase_equals_that_of_the_network(steps):
    """For any target, and any number of steps."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        u, v = rng.normal(size=(2, 4))
        target = rng.choice([0.0, 1.0]) * rng.normal()
        rate = rng.uniform(0.2, 4.5) * 4 / (u @ u + v @ v)
        outputs, ntk = trained(u, v, target, rate, 3000)
        path = nth.catapult(outputs[0], ntk[0], rate, 4, steps, target=target)
        bounded = np.cumprod(np.abs(outputs[: steps + 1]) < 1e20).astype(bool)
        np.testing.assert_allclose(
            path.outputs[bounded], outputs[: steps + 1][bounded], rtol=1e-6, atol=1e-9
        )
        expected = phase_of(outputs, ntk, rate)
        assert path.phase == expected
        boundary = "lazy" if rate * ntk[0] < 2 else "catapult"
        boundary = boundary if rate * ntk[0] < 4 else "divergent"
        seen.add((expected, target != 0, boundary != expected))
    kinds = {kind for kind, _, _ in seen}
    assert kinds == {"lazy", "catapult", "divergent"}
    assert not any(differs and not has_target for _, has_target, differs in seen)
    assert ("divergent", True, True) in seen  # the boundaries ignore the target
