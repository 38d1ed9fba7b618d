"""Contracted and projected kernels against sums over the kernels themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem

import nth


@pytest.fixture(scope="module", params=["chain", "any network", "vector outputs"])
def case(request):
    """(network, problem, kernels up to r = 4 with one axis per slot, output shape)."""
    if request.param == "chain":
        network, problem = make_network(4, 2, use_bias=True), make_problem(3, 2)
    elif request.param == "any network":
        network, problem = Shared(2, jax.random.key(0)), make_problem(3, 1, 2)
    else:
        network, problem = make_network(3, 1, outputs=2), make_problem(3, 1, outputs=2)
    formed = nth.kernels(network, problem, order=4)
    c = 2 if request.param == "vector outputs" else 1
    slots = [
        np.asarray(k).reshape((-1,) + (3 * c,) * (r - 1))
        for r, k in enumerate(formed, start=1)
    ]
    return network, problem, dict(enumerate(slots, start=1)), formed.out_shape


PATTERNS = [
    (2, "v", "ab,b->a"),
    (3, "vw", "abc,b,c->a"),
    (3, ".v", "abc,c->ab"),
    (3, "v.", "abc,b->ac"),
    (4, "uvw", "abcd,b,c,d->a"),
    (4, "..v", "abcd,d->abc"),
    (4, "v.w", "abcd,b,d->ac"),
]


def test_contract_equals_sums_over_the_kernel(case):
    network, problem, kernels, out = case
    rng = np.random.default_rng(0)
    for order, pattern, sum_over in PATTERNS:
        vectors = [
            None if slot == "." else rng.normal(size=(3, *out)) for slot in pattern
        ]
        flat = [v.ravel() for v in vectors if v is not None]
        expected = np.einsum(sum_over, kernels[order], *flat)
        actual = nth.contract(network, problem, vectors, order=order)
        assert actual.shape == (len(problem.x), *out) + (3, *out) * pattern.count(".")
        np.testing.assert_allclose(actual.ravel(), expected.ravel(), rtol=1e-10)


def test_projection_equals_sums_over_the_kernels(case):
    network, problem, kernels, out = case
    modes = np.random.default_rng(1).normal(size=(2, 3, *out))
    projection = nth.project(network, problem, modes, order=4)
    e = modes.reshape(2, -1)
    n = e.shape[1]
    for r, letters in ((1, "a"), (2, "ab"), (3, "abc"), (4, "abcd")):
        ends = letters.translate(str.maketrans("abcd", "ijkl"))
        ins = ",".join(x + y for x, y in zip(ends, letters, strict=True))
        expected = np.einsum(f"{letters},{ins}->{ends}", kernels[r][:n], *[e] * r)
        np.testing.assert_allclose(projection[r], expected, rtol=1e-9, atol=1e-12)


def test_fifth_projection_equals_sums_over_the_kernel():
    network, problem = make_network(3, 1), make_problem(2, 0)
    e = np.random.default_rng(1).normal(size=(2, 2))
    kernel = nth.kernels(network, problem, order=5)[5]
    expected = np.einsum("abcde,ia,jb,kc,ld,me->ijklm", kernel, *[e] * 5)
    actual = nth.project(network, problem, e, order=5)[5]
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_leading_modes_are_the_eigenvectors(monkeypatch, problem):
    network = make_network(6, 2)
    ntk = np.asarray(nth.kernels(network, problem, order=2)[2][: problem.n_train])
    values, vectors = np.linalg.eigh(ntk)
    for dense in (4096, 1):  # the full matrix, and the Lanczos method
        monkeypatch.setattr("nth._kernels.projection._DENSE", dense)
        actual = nth.project(network, problem, 1 if dense == 1 else 3, order=2)
        q = len(actual.modes)
        np.testing.assert_allclose(actual.eigenvalues, values[::-1][:q], rtol=1e-10)
        overlap = np.abs(np.asarray(actual.modes) @ vectors[:, ::-1][:, :q])
        np.testing.assert_allclose(overlap, np.eye(q), atol=1e-8)


def test_results_do_not_depend_on_blocks_of_points(monkeypatch):
    network, problem = make_network(4, 2), make_problem(5, 0)
    modes = np.random.default_rng(1).normal(size=(2, 5))
    whole = nth.project(network, problem, modes, order=4)
    monkeypatch.setattr("nth._kernels.mode_functions._BLOCK_BYTES", 1)
    eqx.clear_caches()
    parts = nth.project(network, problem, modes, order=4)
    np.testing.assert_allclose(parts[4], whole[4], rtol=1e-10)


@pytest.mark.parametrize("open_slots", [2, 3])
def test_results_do_not_depend_on_blocks_of_columns(monkeypatch, open_slots):
    """One column at a time, and two of three, where the last block overlaps."""
    network, problem = make_network(3, 1), make_problem(3, 1)
    kernel = np.asarray(nth.kernels(network, problem, order=4)[4])
    v = np.random.default_rng(0).normal(size=3)
    vectors = [None] * open_slots + [v] * (3 - open_slots)
    expected = kernel if open_slots == 3 else kernel @ v
    for size in (1, 2):
        monkeypatch.setattr(
            "nth._kernels.contraction.closed_columns_at_once",
            lambda points, r, size=size: size << (3 - open_slots),
        )
        eqx.clear_caches()
        actual = nth.contract(network, problem, vectors, order=4)
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    eqx.clear_caches()


def test_errors_name_the_argument(problem):
    network = make_network()
    with pytest.raises(ValueError, match="vectors must be a sequence of 2 arrays"):
        nth.contract(network, problem, [jnp.ones(4)], order=3)
    for call in (nth.contract, nth.project, nth.kernels):
        more = {nth.contract: ([],), nth.project: (1,), nth.kernels: ()}[call]
        with pytest.raises(ValueError, match="order must be at most 12"):
            call(network, problem, *more, order=10**9)
    with pytest.raises(ValueError, match=r"vectors: got shape \(3,\)"):
        nth.contract(network, problem, [jnp.ones(3)], order=2)
    with pytest.raises(ValueError, match="modes must be at most 4"):
        nth.project(network, problem, 5, order=2)
    with pytest.raises(ValueError, match=r"modes: got shape \(2, 3\)"):
        nth.project(network, problem, jnp.ones((2, 3)), order=2)
    with pytest.raises(IndexError, match="goes up to r = 2; got 3"):
        nth.project(network, problem, 1, order=2)[3]
