"""K⁽²⁾ of each output with itself and the mean of these, against the full tensor."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem
from test_factored_gradients import (
    ATTENTION,
    CONVOLUTIONS,
    LOOKUPS,
    RESIDUAL,
    TOKENS,
    attention,
    convolutions,
    draw,
    lookups,
    residual,
)

import nth
from nth._kernels import output_pairs
from nth._kernels.evaluation import points_of
from nth._kernels.feature_pairs import cut_of
from nth._network.base import trainable

NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "residual": (residual, RESIDUAL, draw(5, 3)),
    "attention": (attention, ATTENTION, draw(5, 3)),
    "convolutions": (convolutions, CONVOLUTIONS, draw(5, 1, 6, 7)),
    "lookups": (lookups, LOOKUPS, TOKENS),
}


def parts_of(full: jax.Array) -> dict[str, jax.Array]:
    """The trace and the diagonal of a full K⁽²⁾ with outputs of shape (C,)."""
    return {
        "trace": jnp.einsum("acbc->ab", full) / full.shape[1],
        "diagonal": jnp.einsum("acbc->abc", full),
    }


def case(name: str) -> tuple[Any, nth.Problem]:
    apply, params, x = NETWORKS[name]
    network = nth.from_apply(apply, params)
    outputs = jax.eval_shape(apply, params, x[0]).shape
    return network, nth.Problem(x[:3], jnp.zeros((3, *outputs)), x[3:])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", [2**28, 3000])
def test_parts_equal_those_of_the_full_tensor(name, memory, monkeypatch):
    """With all outputs at once, and with one output and one or two points at a time."""
    monkeypatch.setattr(output_pairs, "_BLOCK_BYTES", memory)
    network, problem = case(name)
    full = nth.kernels(network, problem, order=2)
    for outputs, expected in parts_of(full[2]).items():
        got = nth.kernels(network, problem, order=2, outputs=outputs)
        assert (got.outputs, got.order) == (outputs, 2)
        np.testing.assert_allclose(got[2], expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(got[1], full[1])


def test_rates_rows_and_blocks():
    network, problem = make_network(4, 2, outputs=3), make_problem(4, 2, outputs=3)
    rates = jax.tree.map(jnp.ones_like, eqx.filter(network, eqx.is_inexact_array))
    rates = eqx.tree_at(
        lambda net: net.weights[1], rates, jnp.arange(16.0).reshape(4, 4)
    )
    options = {"order": 2, "learning_rates": rates, "rows": [4, 0, 5]}
    full = nth.kernels(network, problem, **options)
    for outputs, expected in parts_of(full[2]).items():
        for block_size in (None, 1, 2, 7):
            got = nth.kernels(
                network, problem, **options, outputs=outputs, block_size=block_size
            )
            assert not got.complete
            np.testing.assert_allclose(got[2], expected, rtol=1e-12)


def classifier(params, x):
    """Two features and six outputs."""
    features = jnp.tanh(params["w"] @ x).reshape(2, 2).mean(1)
    return (params["read"] @ jnp.sin(features) + params["bias"]).reshape(3, 2)


CLASSIFIER = {"w": draw(4, 3), "read": draw(6, 2), "bias": draw(6)}


@pytest.mark.parametrize("outputs", ["trace", "diagonal"])
def test_a_network_that_ends_in_few_features(outputs):
    """By the gradients of the features, also with rates and with some rows only."""
    x = draw(5, 3)
    network = nth.from_apply(classifier, CLASSIFIER)
    problem = nth.Problem(x[:3], jnp.zeros((3, 3, 2)), x[3:])
    rates = nth.from_apply(classifier, {"w": draw(4, 3) ** 2, "read": 0.5, "bias": 2.0})
    for options in ({}, {"rows": [4, 1], "learning_rates": rates}):
        points = points_of(
            trainable(
                network,
                problem,
                eqx.is_inexact_array,
                options.get("learning_rates"),
            ),
            options.get("rows"),
        )
        cut = cut_of(points)
        assert cut is not None
        assert (cut.size, len(cut.below), len(cut.above)) == (2, 1, 2)
        full = nth.kernels(network, problem, order=2, **options)[2]
        rows = len(full)
        expected = parts_of(full.reshape(rows, 6, 3, 6))[outputs]
        got = nth.kernels(network, problem, order=2, outputs=outputs, **options)[2]
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-12)


def test_a_parameter_in_features_and_outputs_is_not_split():
    def tied(params, x):
        return jnp.concatenate([params["w"]] * 3) @ jnp.tanh(params["w"] @ x)

    def skipping(params, x):
        return params["read"] @ jnp.tanh(params["w"] @ x)[:2] + x[0]

    x = draw(4, 3)
    for apply, params in (
        (tied, {"w": draw(3, 3)}),
        (skipping, {"w": draw(3, 3), "read": draw(7, 2)}),
    ):
        network = nth.from_apply(apply, params)
        outputs = jax.eval_shape(apply, params, x[0]).shape
        problem = nth.Problem(x, jnp.zeros((4, *outputs)))
        assert (
            cut_of(points_of(trainable(network, problem, eqx.is_inexact_array))) is None
        )
        full = nth.kernels(network, problem, order=2)[2]
        got = nth.kernels(network, problem, order=2, outputs="trace")[2]
        np.testing.assert_allclose(got, parts_of(full)["trace"], rtol=1e-12)


def test_outputs_of_any_shape():
    def apply(params, x):
        return jnp.tanh(params @ x).reshape(2, 3)

    x = draw(4, 2)
    network = nth.from_apply(apply, draw(6, 2))
    problem = nth.Problem(x[:3], jnp.zeros((3, 2, 3)), x[3:])
    full = nth.kernels(network, problem, order=2)[2].reshape(4, 6, 3, 6)
    parts = parts_of(full)
    shapes = {"trace": (4, 3), "diagonal": (4, 3, 2, 3)}
    for outputs, shape in shapes.items():
        got = nth.kernels(network, problem, order=2, outputs=outputs)[2]
        assert got.shape == shape
        np.testing.assert_allclose(got.reshape(parts[outputs].shape), parts[outputs])


def test_one_output_without_an_axis_is_full(problem):
    network = make_network(4, 1)
    got = nth.kernels(network, problem, order=2, outputs="trace")
    assert got.outputs == "full"
    np.testing.assert_allclose(got[2], nth.kernels(network, problem, order=2)[2])


def test_under_transformations(monkeypatch):
    monkeypatch.setattr(output_pairs, "_BLOCK_BYTES", 3000)
    network, problem = case("residual")
    expected = nth.kernels(network, problem, order=2, outputs="trace")[2]

    @eqx.filter_jit
    def jitted(network, problem):
        return nth.kernels(network, problem, order=2, outputs="trace")[2]

    np.testing.assert_allclose(jitted(network, problem), expected, rtol=1e-12)


def test_float32():
    to_float32 = partial(jnp.asarray, dtype=jnp.float32)
    network = jax.tree.map(
        lambda leaf: to_float32(leaf) if eqx.is_array(leaf) else leaf,
        make_network(4, 1, outputs=3),
    )
    x = to_float32(draw(4, 3))
    problem = nth.Problem(x, jnp.zeros((4, 3), jnp.float32))
    full = nth.kernels(network, problem, order=2)[2]
    for outputs, expected in parts_of(full).items():
        got = nth.kernels(network, problem, order=2, outputs=outputs)[2]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def sizes(jaxpr: Any) -> set[int]:
    """The number of entries of every array in a jaxpr and in those within it."""
    entries = {int(np.prod(v.aval.shape)) for e in jaxpr.eqns for v in e.outvars}
    for equation in jaxpr.eqns:
        for part in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                entries |= sizes(inner)
    return entries


def test_the_full_tensor_is_not_formed():
    n, outputs = 6, 50
    network = make_network(4, 1, outputs=outputs)
    x = draw(n, 3)

    def largest(part):
        def ntk(x):
            problem = nth.Problem(x, jnp.zeros((n, outputs)))
            return nth.kernels(network, problem, order=2, outputs=part)[2]

        return max(sizes(jax.make_jaxpr(ntk)(x).jaxpr))

    full = (n * outputs) ** 2
    assert largest("full") >= full
    # The gradients by the last layer's weights have n C² factors.
    assert max(largest("trace"), largest("diagonal")) <= n * outputs**2 < full


def test_memory_error_names_the_trace(monkeypatch):
    monkeypatch.setattr("nth._network.memory.available_bytes", lambda: 20_000)
    monkeypatch.setattr("nth._network.memory._LITTLE", 0)
    network, problem = make_network(4, 1, outputs=20), make_problem(4, 2, outputs=20)
    with pytest.raises(ValueError, match='outputs="trace"'):
        nth.kernels(network, problem, order=2)
    assert nth.kernels(network, problem, order=2, outputs="trace")[2].shape == (6, 4)


@pytest.fixture(scope="module")
def parts() -> dict[str, nth.Kernels]:
    network, problem = make_network(4, 1, outputs=2), make_problem(4, 2, outputs=2)
    return {
        name: nth.kernels(network, problem, order=2, outputs=name)
        for name in ("trace", "diagonal")
    }


@pytest.mark.parametrize("outputs", ["trace", "diagonal"])
def test_what_needs_the_full_kernel_says_so(parts, outputs):
    network, problem = make_network(4, 1, outputs=2), make_problem(4, 2, outputs=2)
    kernels = parts[outputs]
    message = f'outputs="{outputs}".*form them again with outputs="full"'
    for solve in (
        lambda: nth.DenseHierarchy(kernels, problem),
        lambda: nth.closed_form(kernels, problem, [1.0]),
        lambda: nth.perturbative(kernels, problem, [1.0]),
    ):
        with pytest.raises(ValueError, match=message):
            solve()
    with pytest.raises(ValueError, match="give order=2"):
        nth.kernels(network, problem, order=3, outputs=outputs)
    with pytest.raises(ValueError, match="outputs must be one of"):
        nth.kernels(network, problem, order=2, outputs="traces")


def test_spectrum(parts):
    spectrum = nth.spectrum(parts["trace"])
    expected = np.linalg.eigvalsh(parts["trace"][2][:4])[::-1]
    np.testing.assert_allclose(spectrum.eigenvalues, expected, atol=1e-12)
    assert spectrum.modes.shape == (4, 4)
    with pytest.raises(ValueError, match="a spectrum takes all pairs of outputs"):
        nth.spectrum(parts["diagonal"])


@pytest.mark.parametrize("outputs", ["trace", "diagonal"])
def test_files(parts, outputs, tmp_path):
    network, problem = make_network(4, 1, outputs=2), make_problem(4, 2, outputs=2)
    parts[outputs].save(tmp_path / "k.npz", network, problem)
    again = nth.Kernels.load(tmp_path / "k.npz", network, problem)
    assert again.outputs == outputs
    for one, other in zip(again, parts[outputs], strict=True):
        np.testing.assert_array_equal(one, other)


def test_shapes_are_checked(parts):
    tensors = parts["trace"].tensors
    with pytest.raises(ValueError, match="tensors must be"):
        nth.Kernels(tensors)
    with pytest.raises(ValueError, match=r"\(m, n, \*out\)"):
        nth.Kernels(tensors, outputs="diagonal")
    with pytest.raises(ValueError, match="outputs must be one of"):
        nth.Kernels(tensors, outputs="mean")
    assert nth.Kernels(tensors, outputs="trace").out_shape == (2,)
