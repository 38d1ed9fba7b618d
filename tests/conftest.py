"""Strict JAX for every test: x64 on, no implicit promotion of rank or dtype."""

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

# These tests spend their time on compilation, not in compiled code. XLA reads the flags
# later, and aborts on an unknown one, such as a flag that a newer version has removed.
FAST = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    FAST += " --xla_cpu_use_fusion_emitters=false"
    # Modules cut for several threads take longer where each core runs its own tests.
    FAST += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FAST)
# Lines of Python in compiled programs, which nothing here reads, take 4 %.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Tracing creates many objects that live on: frequent collections cost 5 %.
gc.set_threshold(100_000, 50, 50)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.core import Tracer  # noqa: E402
from memory_maps import clear_caches_of_many_maps  # noqa: E402

import nth  # noqa: E402
from nth._integrate import integrate  # noqa: E402


@pytest.fixture(autouse=True)
def _few_maps() -> Iterator[None]:
    yield
    clear_caches_of_many_maps()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.npz"


@pytest.fixture
def no_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on solves fail; only shapes may be computed."""
    solve = integrate.solve_piece

    def refuse(dynamics: Any, state: Any, *args: Any, **options: Any) -> Any:
        leaves = jax.tree.leaves(state)
        assert all(isinstance(leaf, Tracer) for leaf in leaves), "a solve"
        return solve(dynamics, state, *args, **options)

    monkeypatch.setattr(integrate, "solve_piece", refuse)


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jaxtyping's checks, which a user does not enable."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def problem() -> nth.Problem:
    """Four training and two test points in three dimensions, targets ±1."""
    return make_problem()


def make_problem(n=4, q=2, d=3, outputs=None, loss=None, seed=0) -> nth.Problem:
    """A small random problem, inputs of unit norm."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + q, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    loss = nth.SquaredError() if loss is None else loss
    if isinstance(loss, nth.SoftmaxCrossEntropy):
        y = np.arange(n) % (outputs or 2)
    else:
        y = rng.choice([-1.0, 1.0], size=(n,) if outputs is None else (n, outputs))
    return nth.Problem(x[:n], y, x[n:], loss=loss)


def make_network(
    width: int = 6, depth: int = 2, d: int = 3, outputs=None, seed=0, **options: Any
) -> nth.MLP:
    """A tiny fully connected network."""
    out_size = "scalar" if outputs is None else outputs
    key = jax.random.key(seed)
    return nth.MLP(d, width, depth, out_size=out_size, key=key, **options)


def tampered(file: Path, **changes: np.ndarray) -> bytes:
    """An archive with some arrays replaced, and with a matching header and digest."""
    with np.load(file) as stored:
        arrays: dict[str, Any] = {**stored, **changes}
    leaves = [arrays[f"leaf_{i}"] for i in range(len(arrays) - 2)]
    header = json.loads(str(arrays["header"]))
    header["leaves"] = [[leaf.dtype.name, leaf.shape] for leaf in leaves]
    arrays["header"] = json.dumps(header)
    content = arrays["header"].encode() + b"".join(leaf.tobytes() for leaf in leaves)
    arrays["digest"] = hashlib.sha256(content).hexdigest()
    np.savez(file, **arrays)
    return file.read_bytes()


class Shared(eqx.Module):
    """A network with a shared weight, normalization and attention; not an MLP."""

    w: jax.Array
    v: jax.Array

    def __init__(self, d: int, key: jax.Array):
        w_key, v_key = jax.random.split(key)
        self.w = jax.random.normal(w_key, (d, d))
        self.v = jax.random.normal(v_key, (d,))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.tanh(self.w @ x)
        h = jnp.tanh(self.w @ h) + x
        attention = jax.nn.softmax(jnp.outer(h, self.v), axis=1)
        h = attention @ h
        return jnp.vdot(self.v, h / jnp.sqrt(jnp.mean(h**2) + 0.1))
