"""The law of trained networks at finite width, beside means over networks."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.linalg import expm

import nth

N, Q = 3, 2
M = N + Q
TS = jnp.array([0.0, 1.0, 5.0, jnp.inf])
RNG = np.random.default_rng(0)
PROBLEM = nth.Problem(np.eye(M)[:N], RNG.normal(size=N), np.eye(M)[N:])
ROOT = RNG.normal(size=(M, 6))
NTK = ROOT @ ROOT.T / 6 + 0.3 * np.eye(M)


def tensor(slots: int, size: float) -> np.ndarray:
    """Symmetric in its first two slots."""
    drawn = size * RNG.normal(size=(M,) * slots)
    return (drawn + np.swapaxes(drawn, 0, 1)) / 2


# A distribution of kernels with few random numbers z, whose moments are known: f₀ =
# z₀ u₀ + z₁ u₁, and changes of order ε, ε² of the others.
U = 0.7 * RNG.normal(size=(2, M))
SPREAD, SHIFT, WITH_F = (tensor(2, 0.3) for _ in range(3))
THIRD = [tensor(3, 0.3) for _ in range(2)]
FOURTH = tensor(4, 0.3)


def kernels_of(z: jax.Array, eps: Any) -> nth.Kernels:
    ntk = NTK + eps * z[2] * SPREAD + eps**2 * (SHIFT + (z[0] ** 2 - 1) * WITH_F)
    third = eps**2 * (z[0] * THIRD[0] + z[1] * THIRD[1])
    f = z[0] * U[0] + z[1] * U[1]
    fourth = jnp.asarray(eps**2 * FOURTH)
    return nth.Kernels((f, ntk[:, :N], third[:, :N, :N], fourth[:, :N, :N, :N]))


def corrections_of(eps: float) -> nth.infinite.Corrections:
    outer = np.multiply.outer
    parts = (
        U.T @ U,
        NTK,
        np.zeros((M, M)),
        eps**2 * SHIFT,
        np.zeros((M,) * 4),
        eps**2 * outer(SPREAD, SPREAD),
        2 * eps**2 * outer(WITH_F, outer(U[0], U[0])),
        eps**2 * (outer(THIRD[0], U[0]) + outer(THIRD[1], U[1])),
        eps**2 * FOURTH,
        0.0,
    )
    return nth.infinite.Corrections(*map(jnp.asarray, parts))


def test_mean_over_networks_of_the_perturbative_solution():
    """The law differs from the mean and covariance, by Gauss–Hermite sums, of
    `nth.perturbative` of each network by terms of order ε⁴."""
    nodes, weights = hermegauss(7)
    points = np.array(list(product(nodes, repeat=3)))
    weights = np.prod(list(product(weights / weights.sum(), repeat=3)), axis=1)

    @jax.jit
    def trained(eps: jax.Array) -> jax.Array:
        def of_point(z: jax.Array) -> jax.Array:
            path = nth.perturbative(kernels_of(z, eps), PROBLEM, TS)
            return every_point(path)

        return jax.lax.map(of_point, jnp.asarray(points), batch_size=50)

    errors = []
    for eps in (0.05, 0.025):
        outputs = np.asarray(trained(jnp.asarray(eps)))
        mean = np.tensordot(weights, outputs, 1)
        rest = outputs - mean
        covariance = np.einsum("z,zta,ztb->tab", weights, rest, rest)
        law = nth.infinite.ensemble(corrections_of(eps), PROBLEM, TS)
        errors.append(
            np.stack(
                [
                    np.max(np.abs(law.mean - mean), axis=1),
                    np.max(np.abs(law.covariance - covariance), axis=(1, 2)),
                ]
            )
        )
    assert np.max(errors[0][:, 0]) < 1e-13  # at t = 0 all is exact
    np.testing.assert_allclose(np.log2(errors[0] / errors[1])[:, 1:], 4, atol=0.1)
    # The O(ε²) terms are much larger than these errors.
    limit = nth.infinite.InfiniteKernels(*map(jnp.asarray, (U.T @ U, NTK)))
    wide = nth.infinite.ensemble(limit, PROBLEM, TS)
    law = nth.infinite.ensemble(corrections_of(0.025), PROBLEM, TS)
    assert np.all(
        np.max(np.abs(law.mean - wide.mean), axis=1)[1:] > 20 * errors[1][0, 1:]
    )


def test_without_corrections_it_is_the_law_at_infinite_width():
    limit = nth.infinite.InfiniteKernels(*map(jnp.asarray, (U.T @ U, NTK)))
    wide = nth.infinite.ensemble(limit, PROBLEM, TS)
    law = nth.infinite.ensemble(corrections_of(0.0), PROBLEM, TS)
    np.testing.assert_allclose(law.mean, wide.mean, atol=1e-13)
    whole, expected = np.asarray(law.covariance), np.asarray(wide.covariance)
    np.testing.assert_allclose(whole, expected, atol=1e-13)
    tests = nth.infinite.ensemble(corrections_of(0.0), PROBLEM, TS, points="test")
    np.testing.assert_allclose(np.asarray(tests.covariance), whole[:, N:, N:])
    np.testing.assert_allclose(tests.mean, law.mean[:, N:])
    short = nth.infinite.ensemble(corrections_of(0.0), PROBLEM, TS, covariance=False)
    assert short.covariance is None
    np.testing.assert_allclose(short.variance, law.variance)


def every_point(path: Any) -> jax.Array:
    return jnp.concatenate([path.train, path.test], axis=1)


def test_sampled_networks():
    """2,000 networks, each by `nth.perturbative`, whose O(1/m) terms are resolved by
    pairing it with the constant kernel of infinite width, of a known law."""
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-0.8, 0.6], [0.6, 0.8], [0.6, -0.8]])
    problem = nth.Problem(x[:N], np.array([1.0, -1.0, 0.5]), x[N:])
    ts, depth, width = jnp.array([1.0, 6.0]), 2, 96
    options: Any = {"depth": depth, "sigma_w": 1.5, "sigma_a": 1.2}
    options["parameterization"] = "ntk"
    limit = nth.infinite.kernels(x, **options)

    @jax.jit
    def trained(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of_key(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            network = nth.MLP(2, width, key=key, **options)
            kernels = nth.kernels(network, problem, order=4, progress=False)
            first = nth.perturbative(kernels, problem, ts)
            constant = nth.Kernels((kernels[1], limit.ntk[:, :N]))
            paired = nth.closed_form(constant, problem, ts)
            return every_point(first), every_point(paired)

        return jax.lax.map(of_key, keys, batch_size=20)

    keys = jax.random.split(jax.random.key(depth), 2000)
    outputs, paired = (np.asarray(part) for part in trained(keys))
    found = nth.infinite.corrections(x, width=width, **options)
    law = nth.infinite.ensemble(found, problem, ts)
    start = nth.infinite.InfiniteKernels(limit.nngp + found.nngp_correction, limit.ntk)
    wide = nth.infinite.ensemble(start, problem, ts)
    for name, draws in {
        "mean": (outputs, paired, law.mean, wide.mean),
        "variance": (
            (outputs - law.mean[None]) ** 2,
            (paired - wide.mean[None]) ** 2,
            law.deviation**2,
            wide.deviation**2,
        ),
    }.items():
        gap = draws[0] - draws[1]
        error = gap.std(axis=0) / len(gap) ** 0.5
        expected = np.asarray(draws[2] - draws[3])
        score = (gap.mean(axis=0) - expected) / error
        assert np.sqrt(np.mean(score**2)) < 1.8, (name, score)
        # At infinite width the two are the same.
        assert np.max(np.abs(gap.mean(axis=0)) / error) > 5, (name, score)


def test_average_over_a_fluctuating_kernel():
    """With no other statistics the resummed law is the mean over K = Θ^½ e^S Θ^½ with
    S of one random number, here by Gauss–Hermite sums."""
    eps = 0.4
    zero = np.zeros((M, M))
    found = corrections_of(eps)
    none = jnp.zeros_like(found.third)
    parts = found.nngp, found.ntk, jnp.asarray(zero), jnp.asarray(zero), none
    found = nth.infinite.Corrections(
        *parts, found.ntk_covariance, none, none, none, found.change
    )
    law = nth.infinite.ensemble(found, PROBLEM, TS, resummed=True)
    values, vectors = np.linalg.eigh(NTK)
    root = vectors * np.sqrt(values)
    spread = np.linalg.solve(root, eps * SPREAD) @ np.linalg.inv(root).T
    nodes, weights = hermegauss(20)
    rows, squares = [], []
    for z in nodes:
        kernel = root @ expm(z * spread - spread @ spread / 2) @ root.T
        limit = nth.infinite.InfiniteKernels(*map(jnp.asarray, (U.T @ U, kernel)))
        of_kernel = nth.infinite.ensemble(limit, PROBLEM, TS)
        rows.append(of_kernel.mean)
        outer = np.einsum("ta,tb->tab", of_kernel.mean, of_kernel.mean)
        squares.append(np.asarray(of_kernel.covariance) + outer)
    weights = weights / weights.sum()
    mean, second = (np.tensordot(weights, part, 1) for part in (rows, squares))
    covariance = second - np.einsum("ta,tb->tab", mean, mean)
    plain = nth.infinite.ensemble(found, PROBLEM, TS)
    for value, expanded, expected in (
        (law.mean, plain.mean, mean),
        (law.covariance, plain.covariance, covariance),
    ):
        added = np.max(np.abs(np.asarray(expanded) - expected))
        np.testing.assert_allclose(np.asarray(value), expected, atol=0.02 * added)
        np.testing.assert_allclose(np.asarray(value)[0], expected[0], atol=1e-12)


def test_resummation_is_of_the_next_order():
    """It changes the law by terms of order ε⁴, and nothing at the start."""
    gaps = []
    for eps in (0.1, 0.05):
        laws = [
            nth.infinite.ensemble(corrections_of(eps), PROBLEM, TS, resummed=resummed)
            for resummed in (False, True)
        ]
        mean, covariance = (
            np.abs(np.asarray(getattr(laws[1], k)) - np.asarray(getattr(laws[0], k)))
            for k in ("mean", "covariance")
        )
        gaps.append([np.max(mean, axis=1), np.max(covariance, axis=(1, 2))])
    ratios = np.log2(np.divide(gaps[0], np.maximum(gaps[1], 1e-16)))
    assert np.max(np.abs(np.asarray(gaps)[:, :, 0])) < 1e-13
    np.testing.assert_allclose(ratios[:, 1:], 4, atol=0.3)


def test_bad_input_and_float32():
    found = corrections_of(0.1)
    single = jax.tree.map(lambda part: part.astype(jnp.float32), found)

    def problem(dtype: Any, *, targets: Any = PROBLEM.y_train) -> nth.Problem:
        return nth.Problem(
            np.eye(M, dtype=dtype)[:N],
            targets.astype(dtype),
            np.eye(M, dtype=dtype)[N:],
        )

    law = nth.infinite.ensemble(found, PROBLEM, TS)
    narrow = nth.infinite.ensemble(single, problem(np.float32), TS)
    assert narrow.mean.dtype == narrow.variance.dtype == jnp.float32
    np.testing.assert_allclose(narrow.mean, law.mean, atol=1e-3)
    np.testing.assert_allclose(narrow.variance, law.variance, atol=1e-3)
    resummed = nth.infinite.ensemble(single, problem(np.float32), TS, resummed=True)
    assert resummed.mean.dtype == jnp.float32
    np.testing.assert_allclose(resummed.mean, law.mean, atol=1e-2)

    def refused(words: str, *arguments: Any) -> None:
        with pytest.raises(ValueError, match=words):
            nth.infinite.ensemble(*arguments)

    refused("kernels are corrections on 5 points of dtype float32", single, PROBLEM, TS)
    two = problem(np.float64, targets=np.ones((N, 2)))
    refused("problem has targets of shape", found, two, TS)
    refused("ts must", found, PROBLEM, [2.0, 1.0])
    flat = jax.tree.map(jnp.ones_like, found)
    refused("ts has inf, and the NTK", flat, PROBLEM, TS)
    limit = nth.infinite.InfiniteKernels(found.nngp, found.ntk)
    with pytest.raises(ValueError, match="resummed is True, and kernels of infinite"):
        nth.infinite.ensemble(limit, PROBLEM, TS, resummed=True)
    broken = jax.tree.map(lambda part: part * jnp.nan, found)
    refused("kernels have NaN", broken, PROBLEM, TS)
