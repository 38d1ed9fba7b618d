"""The kernel along a solution, by three methods, and its leading modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Shared, make_network, make_problem

import nth

TS = np.array([0.0, 0.5, 2.0])


def random_state(template, key, scale=0.3):
    """A random state; the identities hold at any state."""
    leaves, tree = jax.tree.flatten(template)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    new = [
        scale * jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, new)


def test_matrix_free_kernel_equals_that_of_the_tensors():
    """For a linear loss g is constant: at p = 4 the tensors give
    K̃⁽²⁾ = K⁽²⁾ − t K⁽³⁾·g + t²/2 K⁽⁴⁾·g·g, and one Runge–Kutta step is exact."""
    x = make_problem(3, 1)
    loss = nth.CustomLoss(lambda output, target: jnp.vdot(output, target))
    y = jnp.asarray([[1.0, -2.0], [0.5, 1.0], [0.3, -1.0]])
    problem = nth.Problem(x.x_train, y, x.x_test, loss=loss)
    network = make_network(4, 1, outputs=2)
    formed = nth.kernels(network, problem, order=4)
    level = nth.MatrixFreeHierarchy(network, problem, order=4, block_size=2)
    step, g = 0.7, y / 3
    field = eqx.filter_jit(lambda state: level.vector_field(jnp.zeros(()), state, None))

    def moved(state, rate, h):
        return jax.tree.map(lambda s, r: s + h * r, state, rate)

    start = level.initial_state()
    k1 = field(start)
    k2 = field(moved(start, k1, step / 2))
    k3 = field(moved(start, k2, step / 2))
    k4 = field(moved(start, k3, step))
    state = start
    for rate, weight in ((k1, 1), (k2, 2), (k3, 2), (k4, 1)):
        state = moved(state, rate, weight * step / 6)
    third = jnp.tensordot(formed[3], g, 2)
    fourth = jnp.tensordot(jnp.tensordot(formed[4], g, 2), g, 2)
    expected = formed[2] - step * third + step**2 / 2 * fourth
    actual = eqx.filter_jit(level.ntk)(state)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
    dense = nth.DenseHierarchy(formed, problem)
    np.testing.assert_array_equal(dense.ntk(dense.initial_state()), formed[2])
    v = jnp.ones((3, 2))
    product = dense.ntk_product(dense.initial_state(), v)
    np.testing.assert_allclose(product, jnp.tensordot(formed[2], v, 2), rtol=1e-12)


@pytest.mark.parametrize(("order", "chain"), [(2, False), (3, False), (3, True)])
def test_output_rates_are_products_with_the_kernel(order, chain):
    """df̃/dt = −K̃⁽²⁾ · g at any state, with learning rates, for any network."""
    problem = make_problem(4, 2)
    network = make_network(4, 1) if chain else Shared(3, jax.random.key(0))
    rates = jax.tree.map(lambda leaf: 0.5 + jnp.sin(leaf) ** 2, network)
    if chain:
        rates = eqx.tree_at(lambda net: net.weights, network, (0.5, 2.0))
    level = nth.MatrixFreeHierarchy(network, problem, order=order, learning_rates=rates)
    state = random_state(level.initial_state(), order)
    g, velocity, _ = eqx.filter_jit(level.output_rates)(jnp.zeros(()), state)
    kernel = eqx.filter_jit(level.ntk)(state)
    np.testing.assert_allclose(kernel[:4] @ g, -velocity, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(kernel[:4], kernel[:4].T, rtol=1e-10, atol=1e-12)
    flow = nth.GradientFlow(network, problem, learning_rates=rates)
    state = random_state(flow.params, 0)
    g, velocity, _ = eqx.filter_jit(flow.output_rates)(jnp.zeros(()), state)
    kernel = flow.ntk(state)
    np.testing.assert_allclose(kernel[:4] @ g, -velocity, rtol=1e-10)
    product = eqx.filter_jit(flow.ntk_product)(state, g)
    np.testing.assert_allclose(kernel @ g, product, rtol=1e-10)


def test_levels_predict_the_kernel_of_the_trained_network():
    """Each level has one more time derivative of K(t) than the previous: errors are
    of order t^{p−1}."""
    problem = make_problem(3, 1)
    network = make_network(8, 1)
    formed = nth.kernels(network, problem, order=3)
    ts = np.array([0.05, 0.1])
    truth = nth.kernel_along(nth.GradientFlow(network, problem), ts).ntk
    level_3 = nth.kernel_along(nth.DenseHierarchy(formed, problem), ts)
    np.testing.assert_allclose(level_3.start, formed[2])
    for order, ntk in ((2, formed[2][None]), (3, level_3.ntk)):
        errors = jnp.abs(jnp.broadcast_to(ntk, truth.shape) - truth).max(axis=(1, 2))
        slope = float(jnp.log2(errors[1] / errors[0]))
        assert abs(slope - (order - 1)) < 0.15, (order, slope)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_leading_modes_are_those_of_the_kernel(dtype):
    case = make_problem(4, 1, outputs=2)
    x, y = case.x_train.astype(dtype), case.y_train.astype(dtype)
    problem = nth.Problem(x, y)
    network = make_network(4, 1, outputs=2)
    network = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_array(a) else a, network)
    dynamics = nth.MatrixFreeHierarchy(network, problem, order=3)
    if dtype == jnp.float32:
        dynamics = nth.GradientFlow(network, problem)
    path = nth.spectrum_along(dynamics, TS[1:], 3)
    kernels = jax.jit(jax.vmap(dynamics.ntk))(path.solution.saved)
    assert path.eigenvalues.dtype == kernels.dtype == dtype
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-4
    squares = kernels[:, :4].reshape(2, 8, 8)
    expected = np.linalg.eigvalsh(np.asarray(squares))[:, :-4:-1]
    np.testing.assert_allclose(path.eigenvalues, expected, rtol=tolerance)
    modes = path.modes.reshape(2, 3, -1)
    moved = jnp.einsum("tab,tkb->tka", squares, modes)
    along = path.eigenvalues[:, :, None] * modes
    np.testing.assert_allclose(moved, along, atol=10 * tolerance)


def test_save_fn_sees_the_state_at_each_time(tmp_path, problem):
    formed = nth.kernels(make_network(4, 1), problem, order=2)
    level = nth.DenseHierarchy(formed, problem)

    def save_fn(t, state, args):
        return {"norm": jnp.linalg.norm(state[0]), "f": state[0]}

    whole = nth.integrate(level, TS, save_fn=save_fn)
    pieces = nth.integrate(level, TS, save_fn=save_fn, checkpoint=tmp_path / "run.npz")
    again = nth.integrate(level, TS, save_fn=save_fn, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(whole.saved["f"][:, :4], whole.train)
    np.testing.assert_allclose(
        whole.saved["norm"][-1], jnp.linalg.norm(whole.state[0]), rtol=1e-12
    )
    for other in (pieces, again):
        np.testing.assert_allclose(other.saved["norm"], whole.saved["norm"], 1e-6)
    with pytest.raises(ValueError, match="belongs to another solve"):
        nth.integrate(level, TS, checkpoint=tmp_path / "run.npz")


def test_kernel_along_under_jit_and_vmap(problem):
    @jax.jit
    def last(key):
        network = nth.MLP(3, 4, 1, key=key)
        return nth.kernel_along(nth.GradientFlow(network, problem), [0.5]).ntk[0]

    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(last)(keys)
    np.testing.assert_allclose(both[1], last(keys[1]), atol=1e-7)
    assert float(jnp.max(jnp.abs(both[0] - both[1]))) > 1e-2


def test_errors_name_the_argument(problem):
    network = make_network(4, 1)
    flow = nth.GradientFlow(network, problem)
    with pytest.raises(ValueError, match="dynamics must be an AbstractKernelDynamics"):
        nth.kernel_along(nth.TaylorizedFlow(network, problem, degree=2), TS)
    with pytest.raises(ValueError, match="save_fn: the kernel is saved here"):
        nth.kernel_along(flow, TS, save_fn=lambda t, y, args: y)
    with pytest.raises(ValueError, match="count must be below 4"):
        nth.spectrum_along(flow, TS, 4)
    with pytest.raises(ValueError, match=r"cannot be used under jax\.jit"):
        jax.jit(lambda: nth.spectrum_along(flow, TS, 2).eigenvalues)()
