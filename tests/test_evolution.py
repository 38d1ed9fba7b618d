"""The kernel along a solution: three ways to it, and its leading modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem

import nth

TS = np.array([0.0, 0.5, 2.0])


def drawn(like, key, scale=0.3):
    """Any state at all: the identities hold at each."""
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    new = [
        scale * jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, new)


@pytest.mark.parametrize(("order", "outputs"), [(3, None), (4, 2)])
def test_the_two_forms_agree(order, outputs):
    """The tensor form holds the kernel; the series cuts [J Jᵀ](θ_ε) at the same word
    length, through none of the same code."""
    problem = make_problem(2, 1, outputs=outputs)
    network = make_network(4, 1, outputs=outputs)
    formed = nth.kernels(network, problem, order)
    dense = nth.kernel_along(nth.DenseHierarchy(formed, problem), TS)
    free = nth.kernel_along(nth.MatrixFreeHierarchy(network, problem, order), TS)
    np.testing.assert_allclose(dense.ntk, free.ntk, atol=1e-6)
    np.testing.assert_allclose(dense.ntk[0], formed[2], atol=1e-12)
    np.testing.assert_allclose(free.start, formed[2], atol=1e-12)
    assert float(jnp.max(jnp.abs(dense.ntk[-1] - dense.start))) > 1e-3


def test_a_product_is_what_moves_the_outputs():
    """df̃/dt = −K̃⁽²⁾ · g at any state, whatever the blocks, with rates; p = 2 too."""
    problem = make_problem(4, 2)
    network = Shared(3, jax.random.key(0))
    rates = eqx.tree_at(lambda net: (net.w, net.v), network, (0.5, 2.0))
    for order, size in ((2, 4), (4, 3)):
        level = nth.MatrixFreeHierarchy(
            network, problem, order, learning_rates=rates, block_size=size
        )
        state = drawn(level.initial_state(), order)
        g, velocity, _ = eqx.filter_jit(level.output_rates)(jnp.zeros(()), state)
        product = eqx.filter_jit(level.ntk_product)(state, g)
        np.testing.assert_allclose(product[:4], -velocity, rtol=1e-10, atol=1e-12)
    kernel = eqx.filter_jit(level.ntk)(state)
    np.testing.assert_allclose(kernel @ g, product, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(kernel[:4], kernel[:4].T, rtol=1e-10, atol=1e-12)
    flow = nth.GradientFlow(network, problem, learning_rates=rates)
    state = drawn(flow.params, 0)
    g, velocity, _ = flow.output_rates(jnp.zeros(()), state)
    np.testing.assert_allclose(flow.ntk(state)[:4] @ g, -velocity, rtol=1e-10)
    np.testing.assert_allclose(flow.ntk(state) @ g, flow.ntk_product(state, g), 1e-10)


def test_levels_predict_the_kernel_of_the_network_really_trained():
    """Each level holds one more derivative in time of K(t) than the one below: the
    errors fall as t^{p−1}."""
    problem = make_problem(3, 1)
    network = make_network(8, 1)
    formed = nth.kernels(network, problem, 4)
    ts = np.array([0.05, 0.1])
    truth = nth.kernel_along(nth.GradientFlow(network, problem), ts).ntk
    for order in (2, 3, 4):
        level = nth.DenseHierarchy(formed, problem, order)
        errors = jnp.abs(nth.kernel_along(level, ts).ntk - truth).max(axis=(1, 2))
        slope = float(jnp.log2(errors[1] / errors[0]))
        assert abs(slope - (order - 1)) < 0.15, (order, slope)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_leading_modes_are_those_of_the_kernel(dtype):
    case = make_problem(4, 1, outputs=2)
    x, y = case.x_train.astype(dtype), case.y_train.astype(dtype)
    problem = nth.Problem(x, y)
    network = make_network(4, 1, outputs=2)
    network = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_array(a) else a, network)
    dynamics = nth.MatrixFreeHierarchy(network, problem, 3)
    if dtype == jnp.float32:
        dynamics = nth.GradientFlow(network, problem)
    path = nth.spectrum_along(dynamics, TS[1:], 3)
    whole = nth.kernel_along(dynamics, TS[1:])
    assert path.eigenvalues.dtype == whole.ntk.dtype == dtype
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-4
    _, squares = whole.on_train()
    expected = np.linalg.eigvalsh(np.asarray(squares))[:, :-4:-1]
    np.testing.assert_allclose(path.eigenvalues, expected, rtol=tolerance)
    modes = path.modes.reshape(2, 3, -1)
    moved = jnp.einsum("tab,tkb->tka", squares, modes)
    along = path.eigenvalues[:, :, None] * modes
    np.testing.assert_allclose(moved, along, atol=10 * tolerance)


def test_watch_sees_the_state_at_each_time(tmp_path, problem):
    network = make_network(4, 1)
    flow = nth.GradientFlow(network, problem)

    def watch(state):
        return {"norm": jnp.linalg.norm(state.weights[0]), "a": state.weights[-1]}

    whole = nth.integrate(flow, TS, watch=watch)
    pieces = nth.integrate(flow, TS, watch=watch, checkpoint=tmp_path / "run.npz")
    again = nth.integrate(flow, TS, watch=watch, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(whole.watched["a"][0], network.weights[-1])
    np.testing.assert_allclose(whole.watched["a"][-1], whole.state.weights[-1])
    for other in (pieces, again):
        np.testing.assert_allclose(other.watched["norm"], whole.watched["norm"], 1e-6)
    with pytest.raises(ValueError, match="belongs to another solve"):
        nth.integrate(flow, TS, checkpoint=tmp_path / "run.npz")
    assert nth.integrate(flow, TS).watched is None


def test_transforms(problem):
    """Under jit, over keys; and the gradient of a kernel at a later time."""

    @jax.jit
    def last(key, y):
        network = nth.MLP(3, 4, 1, key=key)
        case = nth.Problem(problem.x_train, y)
        return nth.kernel_along(nth.GradientFlow(network, case), [0.5]).ntk[0]

    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(last, (0, None))(keys, problem.y_train)
    np.testing.assert_allclose(both[1], last(keys[1], problem.y_train), atol=1e-7)
    slope = jax.grad(lambda y: jnp.sum(last(keys[0], y)))(problem.y_train)
    step = jnp.asarray([1e-4, 0, 0, 0])
    up, down = (jnp.sum(last(keys[0], problem.y_train + s)) for s in (step, -step))
    np.testing.assert_allclose(slope[0], (up - down) / 2e-4, rtol=1e-3)


def test_bad_input_is_told(problem):
    network = make_network(4, 1)
    flow = nth.GradientFlow(network, problem)
    with pytest.raises(ValueError, match="dynamics must be an AbstractKernelDynamics"):
        nth.kernel_along(nth.TaylorizedFlow(network, problem, 2), TS)
    with pytest.raises(ValueError, match="watch: it is the kernel that is watched"):
        nth.kernel_along(flow, TS, watch=flow.ntk)
    with pytest.raises(ValueError, match="count must be below 4"):
        nth.spectrum_along(flow, TS, 4)
    with pytest.raises(ValueError, match=r"cannot be used under jax\.jit"):
        jax.jit(lambda: nth.spectrum_along(flow, TS, 2).eigenvalues)()
