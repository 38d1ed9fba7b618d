"""Inputs that are pytrees of arrays, and points at which something is not finite."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from network_kinds import X, Y, draw, two_inputs

import nth


def single_array_version():
    """The network of `two_inputs` with its inputs in one array, category last."""
    case = two_inputs()

    def apply(params, x):
        z = x[3].astype(jnp.int32)
        return case.apply(params, {"x": x[:3], "z": z})

    category = case.problem.x["z"].astype(X.dtype)[:, None]
    x = jnp.concatenate([case.problem.x["x"], category], axis=1)
    return nth.from_apply(apply, case.params), nth.Problem(x[:3], Y, x[3:])


def test_pytrees_equal_a_single_array():
    """In blocks, and at new points."""
    case = two_inputs()
    flat_network, problem = single_array_version()
    solutions = []
    for network, data in ((case.network, case.problem), (flat_network, problem)):
        hierarchy = nth.MatrixFreeHierarchy(network, data, order=3, block_size=2)
        solution = nth.integrate(hierarchy, [0.0, 0.3])
        again = hierarchy.predict(solution.state, data.x_test)
        np.testing.assert_allclose(again, solution.test[-1], atol=1e-12)
        solutions.append(solution)
    np.testing.assert_allclose(solutions[0].test, solutions[1].test, atol=1e-12)
    np.testing.assert_allclose(solutions[0].train, solutions[1].train, atol=1e-12)


def test_pytrees_are_part_of_the_identity_of_a_checkpoint(tmp_path):
    case = two_inputs()
    path = tmp_path / "run.npz"
    first = nth.gradient_flow(case.network, case.problem, [0.1, 0.2], checkpoint=path)
    again = nth.gradient_flow(case.network, case.problem, [0.1, 0.2], checkpoint=path)
    np.testing.assert_array_equal(first.train, again.train)
    x = {**case.problem.x_train, "z": jnp.asarray([0, 2, 2])}
    other = nth.Problem(x, Y, case.problem.x_test)
    with pytest.raises(ValueError, match=r"checkpoint: .* belongs to another solve"):
        nth.gradient_flow(case.network, other, [0.1, 0.2], checkpoint=path)


def test_sharded_pytrees_give_the_same_kernel():
    """Arrays placed on a mesh keep their sharding."""
    case = two_inputs()
    mesh = jax.make_mesh((1,), ("points",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("points"))
    x = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), case.problem.x_train)
    placed = nth.Problem(x, Y, case.problem.x_test)
    actual = nth.kernels(case.network, placed, order=2)[2]
    np.testing.assert_allclose(
        actual, nth.kernels(case.network, case.problem, order=2)[2], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({}, "x_train has no array"),
        ({"a": X, "b": X[:2]}, r"x_train has arrays of \[4, 2\] points"),
        ({"a": X, "b": 3.0}, r"x_train\['b'\] must have shape"),
        ({"a": X, "b": "name"}, r"x_train\['b'\] must hold real numbers"),
        ({"a": X, "b": X.at[1, 0].set(jnp.nan)}, r"x_train\['b'\] has NaN"),
        ({"a": X, "b": X.astype(jnp.float32)}, "dtypes float32, float64"),
        ((X, X[:2]), r"of \[4, 2\] points.*numpy\.stack"),
    ],
)
def test_inconsistent_pytrees_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        nth.Problem(x, jnp.ones(4))


@pytest.mark.parametrize(
    ("x_test", "message"),
    [
        (X, "x_test has inputs .* they must have one structure"),
        ({"x": X}, "they must have one structure"),
        ({"x": X[:, :2], "z": jnp.arange(4)}, r"x_test has inputs of shape .*\(2,\)"),
        ({"x": X, "z": jnp.arange(4.0)}, "x_test has dtype .* cast one of them"),
    ],
)
def test_points_of_another_layout_are_refused(x_test, message):
    case = two_inputs()
    with pytest.raises(ValueError, match=message):
        nth.Problem(case.problem.x_train, Y, x_test)
    hierarchy = nth.MatrixFreeHierarchy(case.network, case.problem, order=2)
    with pytest.raises(ValueError, match=message.replace("x_test", "x_new")):
        hierarchy.predict(hierarchy.initial_state(), x_test)


def test_lists_and_tuples_of_numbers_are_one_array():
    for x in ([[1.0, 2.0], [3.0, 4.0]], ((1.0, 2.0), (3.0, 4.0)), [X[0], X[1]]):
        assert isinstance(nth.Problem(x, [1.0, 2.0]).x_train, jax.Array)


def test_integer_inputs_take_the_dtype_of_the_network():
    x = jnp.arange(4)[:, None]
    network = nth.from_apply(
        lambda w, x: jnp.sum(jnp.tanh(x[0].astype(w.dtype) * w)),
        draw(3).astype(jnp.float32),
    )
    with pytest.raises(ValueError, match=r'float64.*float32.*astype\("float32"\)'):
        nth.kernels(network, nth.Problem(x, jnp.ones(4)), order=2)
    problem = nth.Problem(x, jnp.ones(4, jnp.float32))
    assert nth.kernels(network, problem, order=2)[2].dtype == jnp.float32


# ----------------------------------------------------- points that are not finite


def norm_network(power=1.0):
    """a ‖x W‖^power, which is not smooth at x = 0."""
    params = {"w": draw(3, 4), "a": jnp.asarray(1.0)}

    def apply(params, x):
        z = x @ params["w"]
        return params["a"] * jnp.sum(z**2) ** (power / 2)

    return nth.from_apply(apply, params)


def with_zero_input(q=1):
    return nth.Problem(X[:3].at[1].set(0.0), Y, X[3:] if q else None)


def test_a_zero_input_with_a_finite_gradient_is_accepted():
    """‖·‖ of relu at 0: J Jᵀ by reverse mode is finite, and what depends on it."""
    w = draw(3, 4)
    problem = with_zero_input()
    network = nth.from_apply(
        lambda p, x: p["a"] * jnp.linalg.norm(jax.nn.relu(x @ p["w"])),
        {"w": w, "a": jnp.asarray(1.0)},
    )

    def gradient(x):
        z = np.maximum(x @ w, 0)
        size = np.linalg.norm(z)
        return np.append(np.outer(x, z / (size or 1)).ravel(), size)

    J = np.stack([gradient(np.asarray(x)) for x in problem.x])
    K = J @ J[:3].T
    kernels = nth.kernels(network, problem, order=2)
    np.testing.assert_allclose(kernels[2], K, atol=1e-12)
    rate = nth.max_learning_rate(network, problem)
    np.testing.assert_allclose(rate, 6 / np.linalg.eigvalsh(K[:3])[-1], rtol=1e-7)
    dense = nth.solve(network, problem, [1.0], order=2, method="dense")
    assert np.all(np.isfinite(dense.loss))


def test_kernels_name_the_points_that_are_not_finite():
    problem = with_zero_input()
    with pytest.raises(ValueError, match=r"K\(2\) has NaN.* gradient .*x_train\[1\]"):
        nth.kernels(norm_network(), problem, order=2)
    with pytest.raises(ValueError, match=r"curvature .* is NaN"):
        nth.max_learning_rate(norm_network(), problem)
    swapped = nth.Problem(X[:3], Y, with_zero_input().x_train)
    with pytest.raises(ValueError, match=r"gradient .* at x_test\[1\]"):
        nth.kernels(norm_network(), swapped, order=2)
    with pytest.raises(ValueError, match=r"output is NaN or infinite at x_train\[1\]"):
        nth.kernels(norm_network(-1.0), problem, order=2)
    with pytest.raises(ValueError, match=r"K\(3\) has NaN.*derivatives of order 2"):
        nth.kernels(norm_network(2.5), problem, order=3)


def test_the_cure_for_a_zero_input_works():
    def apply(params, x):
        z = jax.nn.relu(x @ params["w"])
        return params["a"] * jnp.sqrt(jnp.sum(z**2) + 1e-12)

    params = {"w": draw(3, 4), "a": jnp.asarray(1.0)}
    formed = nth.kernels(nth.from_apply(apply, params), with_zero_input(), order=3)
    assert all(bool(jnp.all(jnp.isfinite(kernel))) for kernel in formed)


def test_a_solve_that_cannot_start_names_the_cause():
    problem = with_zero_input()
    for solve in (
        lambda: nth.gradient_flow(norm_network(), problem, [1.0]),
        lambda: nth.solve(
            norm_network(), problem, [1.0], order=2, method="matrix-free"
        ),
    ):
        with pytest.raises(RuntimeError, match=r"at t = 0.*gradient .* x_train\[1\]"):
            solve()
    root = nth.CustomLoss(lambda f, y: jnp.sqrt(jnp.abs(f * y)))
    flat = nth.from_apply(lambda w, x: jnp.sum(w * x), draw(3))
    problem = nth.Problem(X[:3].at[2].set(0.0), Y, loss=root)
    with pytest.raises(RuntimeError, match=r"the loss .* infinite at x_train\[2\]"):
        nth.gradient_flow(flat, problem, [1.0])


def test_fixed_steps_that_diverge_are_reported():
    problem = nth.Problem(X[:3], Y)
    network = nth.from_apply(lambda w, x: jnp.sum(w * x) ** 3, 30 * draw(3))
    steps: Any = {
        "solver": diffrax.Heun(),
        "stepsize_controller": diffrax.ConstantStepSize(),
        "dt0": 0.1,
    }
    with pytest.raises(RuntimeError, match=r"outputs or losses are NaN.*smaller dt0"):
        nth.gradient_flow(network, problem, [5.0], **steps)
    reached = nth.gradient_flow(network, problem, [5.0], throw=False, **steps)
    assert not np.all(np.isfinite(reached.train))


def test_contractions_name_the_points_that_are_not_finite():
    network, swapped = norm_network(), nth.Problem(X[:3], Y, with_zero_input().x_train)
    for call in (
        lambda: nth.contract(network, swapped, [Y], order=2),
        lambda: nth.layer_kernels(network, swapped),
    ):
        with pytest.raises(ValueError, match=r"gradient .* at x_test\[1\]"):
            call()
    with pytest.raises(ValueError, match=r"projection has NaN.* x_train\[1\]"):
        nth.project(network, with_zero_input(), jnp.eye(3)[:1], order=2)
