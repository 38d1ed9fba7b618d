"""K⁽²⁾ of many points in tiles, in memory and in a file, against one block."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from test_factored_gradients import RESIDUAL, draw, residual

import nth
from nth._kernels import assembly, tiles
from nth._kernels.evaluation import points_of
from nth._network.base import trainable


@eqx.filter_jit
def jacobian_product(network: Any, problem: nth.Problem, rates: Any = None) -> Any:
    """K⁽²⁾ from whole Jacobians."""
    params, frozen = eqx.partition(network, eqx.is_inexact_array)
    rates = jax.tree.map(jnp.ones_like, params) if rates is None else rates

    def rows(x: Any) -> Any:
        return jax.jacrev(lambda p: eqx.combine(p, frozen)(x))(params)

    def products(a: Any, b: Any, rate: Any) -> Any:
        axes = tuple(range(a.ndim - rate.ndim, a.ndim))
        rated = b * jnp.broadcast_to(rate, b.shape)
        return jnp.tensordot(a, rated, axes=(axes, axes))

    jacobians = jax.vmap(rows)(problem.x), jax.vmap(rows)(problem.x_train)
    return sum(jax.tree.leaves(jax.tree.map(products, *jacobians, rates)))


NETWORKS: dict[str, Any] = {
    "chain": make_network(5, 2, use_bias=True),
    "chain with outputs": make_network(4, 1, outputs=2),
    "residual": nth.from_apply(residual, RESIDUAL),
}


def problem_of(name: str, n: int = 7, q: int = 4) -> nth.Problem:
    return make_problem(n, q, outputs=None if name == "chain" else 2)


@pytest.fixture
def in_tiles(monkeypatch):
    """Every K⁽²⁾ in tiles, and fewer of them kept than there are."""
    monkeypatch.setattr(assembly, "_is_quick", lambda points, order: False)
    monkeypatch.setattr(tiles, "_HELD_BYTES", 1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("block_size", [2, 3, 6])
def test_tiles_equal_products_of_jacobians(name, block_size, in_tiles):
    """With tiles that divide neither the training nor the test points."""
    network, problem = NETWORKS[name], problem_of(name)
    ntk = nth.kernels(network, problem, order=2, block_size=block_size)[2]
    expected = jacobian_product(network, problem)
    np.testing.assert_allclose(ntk, expected, rtol=1e-12, atol=1e-13)


def test_half_of_the_tiles_are_computed():
    points = points_of(
        trainable(NETWORKS["chain"], make_problem(9, 0), eqx.is_inexact_array)
    )
    computed = list(tiles.tiles(points, 3, progress=False))
    assert len(computed) == 3 + 2 + 1
    assert all(tile.mirrored and tile.row <= tile.column for tile in computed)


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_rates(name, in_tiles):
    network, problem = NETWORKS[name], problem_of(name)
    params = eqx.filter(network, eqx.is_inexact_array)
    rates = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.size / 4), params)
    ntk = nth.kernels(network, problem, order=2, block_size=4, learning_rates=rates)[2]
    expected = jacobian_product(network, problem, rates)
    np.testing.assert_allclose(ntk, expected, rtol=1e-12, atol=1e-12)


def test_default_tiles_of_many_points():
    """More points than a tile has, with no option."""
    n, q = tiles._TILE + 5, 3
    network = make_network(3, 1)
    x = draw(n + q, 3)
    problem = nth.Problem(x[:n], jnp.zeros(n), x[n:])
    rows = [0, n // 2, n - 1, n + 1]
    points = points_of(trainable(network, problem, eqx.is_inexact_array))
    number = tiles.tile_points(points, None)
    assert number < n
    ntk = tiles.filled(points, number, progress=True)
    expected = nth.kernels(network, problem, order=2, rows=rows)[2]
    np.testing.assert_allclose(ntk[np.asarray(rows)], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_files(name, tmp_path):
    network, problem = NETWORKS[name], problem_of(name)
    path = tmp_path / "ntk.npy"
    path.write_text("an earlier file")
    mapped = nth.save_ntk(network, problem, path, block_size=3)
    expected = nth.kernels(network, problem, order=2)[2]
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == np.float64
    np.testing.assert_allclose(mapped, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(np.load(path), mapped)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1.0


def test_files_that_cannot_be_written(tmp_path):
    network, problem = NETWORKS["chain"], problem_of("chain")
    with pytest.raises(ValueError, match="path: there is no folder"):
        nth.save_ntk(network, problem, tmp_path / "none" / "ntk.npy")
    with pytest.raises(ValueError, match=r"under jax\.jit"):
        eqx.filter_jit(nth.save_ntk)(network, problem, tmp_path / "ntk.npy")


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nth._kernels.files._allocate", full)
    path = tmp_path / "ntk.npy"
    with pytest.raises(ValueError, match=r"cannot be written.*No space left"):
        nth.save_ntk(NETWORKS["chain"], problem_of("chain"), path)
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_is_not_finite_leaves_no_file(tmp_path):
    def norm(params, x):
        return jnp.sqrt(jnp.sum((params * x) ** 2))

    network = nth.from_apply(norm, draw(3))
    problem = nth.Problem(jnp.asarray([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), jnp.ones(2))
    with pytest.raises(ValueError, match=r"x_train\[1\]"):
        nth.save_ntk(network, problem, tmp_path / "ntk.npy")
    assert not list(tmp_path.iterdir())


def test_memory_error_names_the_file(monkeypatch):
    monkeypatch.setattr("nth._network.memory.available_bytes", lambda: 100)
    monkeypatch.setattr("nth._network.memory._LITTLE", 0)
    with pytest.raises(ValueError, match=r"nth\.save_ntk"):
        nth.kernels(NETWORKS["chain"], problem_of("chain"), order=2)
