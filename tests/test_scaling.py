"""Sweeps over widths, and exponents with confidence intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_problem

import nth
from nth import scaling

WIDTHS = (4, 8, 16, 32)
KEY = jax.random.key(3)


def noisy(width, key):
    """A law of exponent −1.5, with noise."""
    return {"law": 3.0 * width**-1.5 * jnp.exp(0.1 * jax.random.normal(key))}


def test_a_sweep_equals_a_loop():
    result = scaling.sweep(noisy, WIDTHS, 5, key=KEY, batch_size=2)
    assert result.widths == WIDTHS
    assert result.values["law"].shape == (4, 5)
    for i, width in enumerate(WIDTHS):
        keys = [jax.random.fold_in(jax.random.fold_in(KEY, width), k) for k in range(5)]
        expected = [float(noisy(width, key)["law"]) for key in keys]
        np.testing.assert_allclose(result.values["law"][i], expected, rtol=1e-12)


def test_the_table_of_a_sweep_has_a_row_for_each_initialization():
    values = np.arange(6.0).reshape(2, 3)
    table = scaling.Sweep((4, 8), {"law": values, "rest": -values}).to_dataframe()
    np.testing.assert_array_equal(
        table.pivot(index="width", columns="initialization", values="law"), values
    )
    assert list(table.groupby("width").rest.mean()) == [-1.0, -4.0]
    assert "value" in scaling.Sweep((4, 8), values).to_dataframe()


def test_a_sweep_resumes_from_its_file(tmp_path):
    path = tmp_path / "sweep.npz"
    remaining = [5]

    def failing(width, key):
        def count(value):
            remaining[0] -= 1
            if remaining[0] < 0:
                raise KeyboardInterrupt
            return value

        law = noisy(width, key)["law"]
        return {"law": jax.pure_callback(count, law, law, vmap_method="sequential")}

    with pytest.raises(Exception, match="KeyboardInterrupt"):
        scaling.sweep(failing, WIDTHS, 2, key=KEY, batch_size=1, path=path)
    remaining[0] = 3  # of eight batches, the first five are in the file
    result = scaling.sweep(failing, WIDTHS, 2, key=KEY, batch_size=1, path=path)
    assert remaining[0] == 0
    whole = scaling.sweep(noisy, WIDTHS, 2, key=KEY)
    np.testing.assert_allclose(result.values["law"], whole.values["law"], rtol=1e-12)
    with pytest.raises(ValueError, match="belongs to another sweep"):
        scaling.sweep(noisy, WIDTHS, 2, key=KEY, batch_size=1, path=path)


def test_an_exact_law_has_its_exponent_and_prefactor():
    law = scaling.fit(WIDTHS, 3 * np.asarray(WIDTHS, float) ** -1.5)
    assert law.slope == pytest.approx(-1.5)
    assert law.prefactor == pytest.approx(3)
    assert law.r2 == pytest.approx(1)
    assert law.interval == pytest.approx((-1.5, -1.5))


@pytest.mark.parametrize("reduced", [True, False])
def test_confidence_intervals_have_their_coverage(reduced):
    """80% intervals of 200 experiments, by Student's t and by bootstrap."""
    rng = np.random.default_rng(0)
    widths = np.asarray(WIDTHS, float)
    covered = 0
    for _ in range(200):
        draws = (rng.exponential(size=(4, 100))) * widths[:, None] ** -1.0
        values = np.abs(draws).mean(axis=1) if reduced else draws
        low, high = scaling.fit(WIDTHS, values, confidence=0.8).interval
        covered += low < -1 < high
    assert 0.7 < covered / 200 < 0.9


def test_the_variance_of_the_ntk_scales_as_one_over_the_width():
    """With one hidden layer the NTK is a mean over independent neurons: exactly −1."""
    problem = nth.Problem(make_problem().x_train[:1], np.ones(1))

    def measure(width, key):
        network = nth.MLP(3, width, 1, key=key)
        return nth.kernels(network, problem, order=2, progress=False)[2][0, 0]

    result = scaling.sweep(measure, (4, 16, 64), 2000, key=KEY, batch_size=1000)
    law = scaling.fit(result.widths, result.values, statistic=np.var)
    assert law.interval[0] < -1 < law.interval[1]
    assert law.interval[1] - law.interval[0] < 0.15
    mean = scaling.fit(result.widths, result.values)
    assert abs(mean.slope) < 0.02


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="widths must be distinct"):
        scaling.sweep(noisy, (4, 4), 2, key=KEY)
    with pytest.raises(ValueError, match="measure must return floating scalars"):
        scaling.sweep(lambda w, k: jnp.ones(3), (4,), 2, key=KEY)
    with pytest.raises(ValueError, match="at least three distinct finite numbers"):
        scaling.fit((1, 2), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"values must have shape \(4,\)"):
        scaling.fit(WIDTHS, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"NaN or infinite at widths \[8.0\]"):
        scaling.fit(WIDTHS, [1.0, np.nan, 1.0, 1.0])
    with pytest.raises(ValueError, match="zero has no logarithm"):
        scaling.fit(WIDTHS, [1.0, 0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="one initialization for each width"):
        scaling.fit(WIDTHS, np.ones((4, 1)))
    with pytest.raises(ValueError, match="confidence must be below 1"):
        scaling.fit(WIDTHS, np.ones(4), confidence=1.0)
