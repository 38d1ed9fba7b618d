"""The error estimate: its terms by brute force, its order, and the trained network."""

import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from scipy.integrate import solve_ivp

import nth
from nth._dynamics.dense_terms import gauss_legendre, rates_at
from nth._integrate.estimates import at_start, integrals_at, node_times

TIGHT = diffrax.PIDController(rtol=1e-11, atol=1e-13)
# As many times in both, so that a solve is compiled once. At level 2 the dense form
# evaluates the network at four times, here at all.
TS = np.array([0.0, 0.5, 2.0, 6.0])
SHORT = np.geomspace(0.02, 0.08, 4)
LABELS = make_problem(3, 1, outputs=2, loss=nth.SoftmaxCrossEntropy())
NETWORK = make_network(3, 2, outputs=2)


def rms(values):
    return np.sqrt(
        np.mean(np.asarray(values) ** 2, axis=tuple(range(1, np.ndim(values))))
    )


@pytest.fixture(scope="module")
def kernels():
    return nth.kernels(NETWORK, LABELS, order=4)


def at_both(hierarchy, **options):
    return [
        nth.integrate(hierarchy, ts, stepsize_controller=TIGHT, **options)
        for ts in (TS, SHORT)
    ]


@pytest.fixture(scope="module")
def series():
    """Solutions of the matrix-free form, with [f]_0, …, [f]_{p−1}."""
    solutions = {}
    for p in (2, 4):
        hierarchy = nth.MatrixFreeHierarchy(NETWORK, LABELS, order=p)

        def save(t, state, args, hierarchy=hierarchy):
            return hierarchy.output_terms(state)

        solutions[p] = at_both(hierarchy, save_fn=save)
    return solutions


@pytest.fixture(scope="module")
def dense(kernels):
    """Hierarchies in the dense form, and their solutions."""
    hierarchies = {
        p: nth.DenseHierarchy(kernels, LABELS, order=p, network=NETWORK) for p in (2, 4)
    }
    return {p: (hierarchy, *at_both(hierarchy)) for p, hierarchy in hierarchies.items()}


def dense_terms(hierarchy, ts, by_products):
    """f_2, …, f_{p−1} at `ts` by the quadrature of the dense form."""
    ts = jnp.asarray(ts)
    start = jnp.zeros(())
    times = node_times(hierarchy, start, ts)

    def save(t, state, args):
        return rates_at(hierarchy, state, by_products=by_products)

    assert times is not None
    times, index = np.unique(
        np.asarray(times), return_inverse=True
    )  # a panel may have no width
    solution = nth.integrate(
        hierarchy, times, stepsize_controller=TIGHT, save_fn=save, progress=False
    )
    rates = jax.tree.map(lambda leaf: leaf[index], solution.saved)
    solver = nth.DenseExponential(hierarchy) if by_products else diffrax.Tsit5()
    integrals = at_start(hierarchy, solver).integrals
    assert integrals is not None
    each, _ = integrals_at(hierarchy, start, ts, integrals, rates)
    return np.asarray(each.terms)


@pytest.mark.parametrize("by_products", [False, True])
def test_both_forms_have_the_same_terms(by_products, kernels, series):
    terms = series[4][0].saved
    assert terms.shape[:2] == (len(TS), 4)
    np.testing.assert_allclose(terms.sum(1)[:, :3], series[4][0].train, atol=1e-12)
    hierarchy = nth.DenseHierarchy(kernels, LABELS, order=4)
    dense = dense_terms(hierarchy, TS, by_products)
    expected = np.asarray(terms)[:, 2:].reshape(dense.shape)
    np.testing.assert_allclose(dense, expected, atol=1e-9)
    assert np.all(rms(expected[-1]) > 1e-4)


def test_terms_solve_the_equations_of_each_order(kernels, series):
    """dK⁽ʳ⁾_k/dt = −K⁽ʳ⁺¹⁾_{k−1} · g for p = 4, by SciPy."""
    flat = [np.asarray(kernels[r]).reshape(8, *[6] * (r - 1)) for r in range(1, 5)]
    keys = [(r, k) for r in range(1, 4) for k in range(1, 5 - r)]
    sizes = np.cumsum([flat[r - 1].size for r, _ in keys])[:-1]
    labels = np.eye(2)[np.asarray(LABELS.y_train)]

    def field(t, state):
        pieces = np.split(state, sizes)
        parts = {
            key: piece.reshape(flat[key[0] - 1].shape)
            for key, piece in zip(keys, pieces, strict=True)
        }
        parts |= {(r, 0): flat[r - 1] for r in range(1, 5)}
        f = np.sum([parts[1, k] for k in range(4)], axis=0).reshape(4, 2)[:3]
        odds = np.exp(f)
        g = (odds / odds.sum(1, keepdims=True) - labels).ravel() / 3
        return np.concatenate([-(parts[r + 1, k - 1] @ g).ravel() for r, k in keys])

    start = np.zeros(sum(flat[r - 1].size for r, _ in keys))
    solved = solve_ivp(field, (0, TS[-1]), start, "DOP853", TS, rtol=1e-11, atol=1e-13)
    actual = np.asarray(series[4][0].saved)[:, 1:]
    expected = solved.y[:24].T.reshape(actual.shape)
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_quadrature_integrates_polynomials_and_decay():
    rule = gauss_legendre()
    for power in range(6):
        partial = rule.nodes ** (power + 1) / (power + 1)
        np.testing.assert_allclose(
            rule.partial @ rule.nodes**power, partial, atol=1e-15
        )
    for power in range(12):
        total = rule.weights @ rule.nodes**power
        np.testing.assert_allclose(total, 1 / (power + 1), atol=1e-15)
    for rate in np.geomspace(0.01, 100, 30):  # over [1, 2]
        total = rule.weights @ np.exp(-rate * (1 + rule.nodes))
        exact = (np.exp(-rate) - np.exp(-2 * rate)) / rate
        np.testing.assert_allclose(total, exact, atol=2e-9)


def slope(ts, values):
    return np.polyfit(np.log(ts), np.log(values), 1)[0]


def test_terms_and_estimate_have_their_orders_in_time(series, dense):
    """The term k is of order t^k and the estimate, with the error, of order t^p."""
    for p in (2, 4):
        solution = series[p][1]
        for k in range(1, p):
            assert abs(slope(SHORT, rms(solution.saved[:, k])) - k) < 0.15
        assert abs(slope(SHORT, solution.error_estimate) - p) < 0.2
        assert abs(slope(SHORT, dense[p][2].error_estimate) - p) < 0.2


@pytest.fixture(scope="module")
def trained():
    """A narrow network, trained up to times at which no level is accurate."""
    problem, network = make_problem(6, 4), make_network(32)
    ts = np.geomspace(0.3, 100, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nth.WindowWarning)
        return [
            nth.compare(network, problem, ts, method="dense"),
            nth.compare(network, problem, ts, orders=(2, 3), method="matrix-free"),
        ]


def test_estimate_is_close_to_the_error(trained):
    """The error is below 3 and above 1/10 of the estimate where it is above 1e-3."""
    for comparison in trained:
        for p, solution in comparison.solutions.items():
            outputs = [
                jnp.concatenate([s.train, s.test], axis=1)
                for s in (solution, comparison.truth)
            ]
            error, estimate = rms(outputs[0] - outputs[1]), solution.error_estimate
            seen = error > 1e-3
            assert np.sum(seen) >= 2
            assert np.all(error[seen] < 3 * estimate[seen]), p
            assert np.all(error[seen] > estimate[seen] / 10), p
            np.testing.assert_allclose(estimate, rms(solution.output_errors))
        assert np.all(np.isnan(comparison.truth.error_estimate))
        assert np.isnan(comparison.truth.trusted_until())


def test_error_share_and_trusted_until_follow_from_the_estimate(trained):
    solution = trained[0].solutions[4]
    start = jax.vmap(make_network(32))(trained[0].problem.x)
    outputs = jnp.concatenate([solution.train, solution.test], axis=1)
    change = np.maximum.accumulate(rms(outputs - start[None]))
    share = solution.error_estimate / change
    np.testing.assert_allclose(solution.error_share, share, rtol=1e-9)
    for limit in (0.01, 0.1):
        exceeds = np.flatnonzero(np.asarray(share) > limit)
        expected = solution.ts[exceeds[0]] if len(exceeds) else np.inf
        assert solution.trusted_until(limit) == expected
        assert trained[0].trusted_until(4, limit) == expected
    assert np.isinf(solution.trusted_until(1e9))
    with pytest.raises(ValueError, match=r"share must be above 0"):
        solution.trusted_until(0.0)


def test_comparison_shows_estimates(trained):
    comparison = trained[0]
    text = str(comparison)
    assert "estimate" in text
    assert "p = 2 is trusted until t = " in text
    for p in (2, 3, 4):
        parts = [comparison.error_estimate(p, points) for points in ("train", "test")]
        whole = np.sqrt((6 * parts[0] ** 2 + 4 * parts[1] ** 2) / 10)
        np.testing.assert_allclose(comparison.error_estimate(p), whole)
    lines = comparison.plot().axes[1].get_lines()
    assert sum(line.get_linestyle() == "--" for line in lines) == 3
    data = comparison.to_xarray()
    np.testing.assert_array_equal(
        data.error_estimate.sel(model="p=3"), comparison.solutions[3].error_estimate
    )


def test_level_two_needs_the_network(kernels, series, dense):
    bare = nth.DenseHierarchy(kernels, LABELS, order=2)
    unknown = nth.integrate(bare, TS, stepsize_controller=TIGHT)
    assert np.all(np.isnan(unknown.error_estimate))
    assert unknown.output_errors is None
    known, expected = (s.output_errors for s in (dense[2][1], series[2][0]))
    np.testing.assert_allclose(np.asarray(known), np.asarray(expected), atol=1e-9)
    with pytest.raises(ValueError, match=r"network is not the one that kernels were"):
        nth.DenseHierarchy(
            kernels, LABELS, order=2, network=make_network(3, 2, outputs=2, seed=5)
        )


@pytest.mark.parametrize("order", [2, 4])
def test_checkpoints_do_not_change_the_estimate(order, dense, tmp_path):
    hierarchy, whole, _ = dense[order]
    file = tmp_path / "run.npz"
    for _ in range(2):  # the second time everything is read from the file
        parts = nth.integrate(
            hierarchy, TS, stepsize_controller=TIGHT, checkpoint=file, progress=False
        )
        np.testing.assert_allclose(
            np.asarray(parts.output_errors),
            np.asarray(whole.output_errors),
            rtol=1e-6,
            atol=1e-10,
        )


# ---------------------------------------------------------------- warnings


HARD = make_problem(3, 1)
NARROW = make_network(4, 1)


def level_two(scale, throw=True):
    problem = nth.Problem(HARD.x_train, HARD.y_train * scale, HARD.x_test)
    hierarchy = nth.MatrixFreeHierarchy(NARROW, problem, order=2)
    return nth.integrate(hierarchy, [0.1, 20.0], throw=throw, progress=False)


def test_a_large_error_warns_once():
    with pytest.warns(nth.AccuracyWarning, match=r"more than 50% .* t = 20 on") as seen:
        solution = level_two(jnp.asarray(40.0))
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert solution.error_share[0] < 0.5 < solution.error_share[1]
    assert issubclass(nth.AccuracyWarning, nth.WindowWarning)


def test_a_batch_under_jit_warns_once():
    scales = jnp.array([1e-3, 40.0, 60.0])

    @eqx.filter_jit
    def shares_at(scales):
        return jax.vmap(lambda scale: level_two(scale).error_share)(scales)

    def run():
        shares = jax.block_until_ready(shares_at(scales))
        jax.effects_barrier()
        return shares

    with pytest.warns(nth.AccuracyWarning, match=r"the worst of 3") as seen:
        shares = run()
    assert len(seen) == 1
    assert np.all(np.asarray(shares)[1:, 1] > 0.5)


# ---------------------------------------------------------------- other dynamics


class Decay(nth.AbstractTruncation):
    """f̃ = f₀ e^{−t}, with a known error."""

    problem: nth.Problem
    label: str = eqx.field(static=True, default="decay")
    method = "custom"
    truncated = True

    def initial_state(self):
        return jnp.ones(4)

    def vector_field(self, t, state, args):
        return -state

    def outputs(self, state):
        return state

    def error_norm(self, scaled):
        return jnp.max(jnp.abs(scaled))

    def penalty(self, state):
        return jnp.zeros(())

    def output_errors(self, state):
        return 0.1 * (1 - state)


def test_custom_dynamics_may_define_their_error():
    problem = nth.Problem(HARD.x_train, jnp.zeros(3), HARD.x_test)
    solution = nth.integrate(Decay(problem), [1.0, 2.0])
    expected = 0.1 * (1 - np.exp(-np.array([1.0, 2.0])))
    np.testing.assert_allclose(solution.error_estimate, expected, atol=1e-6)
    np.testing.assert_allclose(solution.error_share, 0.1, atol=1e-6)


def test_derivatives_and_float32_of_the_estimate():
    def last(scale):
        return level_two(scale).error_estimate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nth.WindowWarning)
        slope = jax.jacrev(last)(jnp.asarray(2.0))
        near = [last(jnp.asarray(2.0 + h)) for h in (-1e-4, 1e-4)]
        np.testing.assert_allclose(slope, (near[1] - near[0]) / 2e-4, rtol=1e-3)
        single: Any = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if eqx.is_array(leaf) else leaf,
            (NARROW, HARD),
        )
        forms: tuple[Any, ...] = (("dense", 3), ("matrix-free", 2))
        for method, order in forms:
            both = [
                nth.solve(pair[0], pair[1], [0.0, 1.0], order=order, method=method)
                for pair in (single, (NARROW, HARD))
            ]
            assert both[0].error_estimate.dtype == jnp.float32
            assert both[0].error_estimate[0] < 1e-6
            np.testing.assert_allclose(
                both[0].error_estimate, both[1].error_estimate, rtol=1e-2, atol=1e-6
            )


def test_rounding_errors_are_no_change():
    """Sums of kernels at time zero differ from the outputs in the last place."""

    def apply(w, x):
        return jnp.sum(jnp.tanh(jnp.arctan(w @ x)))

    rng = np.random.default_rng(0)
    network = nth.from_apply(apply, jnp.asarray(rng.normal(size=(4, 3))))
    problem = nth.Problem(rng.normal(size=(3, 3)), np.ones(3))
    solution = nth.solve(network, problem, [0.0], order=2, method="matrix-free")
    assert solution.error_share[0] == 0
