"""Every public function that takes a network, on networks of every kind.

Kernels are computed of each kind, and each kind is solved at level 2, trained, or both.
References are plain JAX, NumPy and SciPy: the Jacobian J row by row, K(2) = J Jᵀ, K(3)
by the definition of D, closed forms for p = 2, and plain loops for training.
"""

import warnings
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from network_kinds import (
    KINDS,
    SOLVED,
    TRAINED,
    LinenNet,
    NNXNet,
    X,
    Y,
    custom_vjp,
    draw,
    linen_variables,
    with_statistics,
)
from scipy.linalg import expm

import nth

T, RATE, STEPS = 0.2, 0.1, 3


@pytest.fixture(autouse=True)
def _promotion():
    """Allow implicit promotion, which Flax and Haiku use."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def each(kinds):
    return pytest.mark.parametrize("make", kinds, ids=lambda make: make.__name__)


def reference(case):
    """f, J and K(3) at all points, and f, J as functions of one vector θ."""
    theta, unravel = ravel_pytree(case.params)
    x = case.problem.x

    @jax.jit
    def outputs(theta):
        return jax.vmap(lambda point: case.apply(unravel(theta), point))(x)

    jacobian = jax.jit(jax.jacrev(outputs))
    J = jacobian(theta)
    return outputs, jacobian, theta, outputs(theta), J, J @ J[:3].T


def third(jacobian, theta, J):
    """K(3)[a, b, c] = ⟨∇K(2)[a, b], ∇f_c⟩."""

    @jax.jit
    @jax.vmap
    def along(direction):
        return jax.jvp(
            lambda t: jacobian(t) @ jacobian(t)[:3].T, (theta,), (direction,)
        )[1]

    return jnp.moveaxis(along(J[:3]), 0, -1)


def close(actual, expected, atol=1e-10):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=atol)


@each(KINDS)
def test_kernels_equal_products_of_derivatives(make, tmp_path):
    case = make()
    network, problem, options = case.network, case.problem, case.options
    _, jacobian, theta, f, J, K = reference(case)
    formed = nth.kernels(network, problem, order=3, **options)
    close(formed[1], f)
    close(formed[2], K)
    close(formed[3], third(jacobian, theta, J))
    close(sum(nth.layer_kernels(network, problem, **options).values()), K)
    v = jnp.asarray([0.3, -1.0, 0.7])
    close(nth.contract(network, problem, [v], order=2, **options), K @ v)
    projection = nth.project(network, problem, 2, order=2, **options)
    close(projection.eigenvalues, jnp.linalg.eigvalsh(K[:3])[::-1][:2])
    formed.save(tmp_path / "k.npz", network, problem, **options)
    loaded = nth.Kernels.load(tmp_path / "k.npz", network, problem, **options)
    close(loaded[3], formed[3], atol=0)
    close(
        nth.max_learning_rate(network, problem, **options),
        2 * 3 / np.linalg.eigvalsh(K[:3])[-1],
        atol=1e-7,
    )
    assert jnp.isfinite(nth.theory.laziness(network, problem, starts=1, **options))
    if make.__name__ not in ("nth_mlp", "equinox_mlp"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # statistics, which nngp cannot freeze
            with pytest.raises(ValueError, match=r"must be an nth\.MLP or eqx\.nn"):
                nth.nngp(network, problem)


# Level 2 is compared with its closed form, not with the network.
@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")
@each(SOLVED)
def test_level_two_equals_its_closed_form(make):
    """Dense, matrix-free and linearized, in continuous and in discrete time."""
    case = make()
    network, problem, options = case.network, case.problem, case.options
    _, _, _, f, J, K = reference(case)
    kept = expm(-np.asarray(K[:3]) * T / 3)
    expected = Y + kept @ (f[:3] - Y)
    dense = nth.solve(network, problem, [T], order=2, method="dense", **options)
    close(dense.train[0], expected, atol=1e-6)
    level = nth.MatrixFreeHierarchy(network, problem, order=2, **options)
    path = nth.spectrum_along(level, [0.0, T], 2)
    close(path.solution.train[1], expected, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(K[:3])[::-1]
    close(path.eigenvalues, np.stack([eigenvalues[:2]] * 2), atol=1e-8)
    flow = nth.GradientFlow(network, problem, **options)
    close(nth.kernel_along(flow, [0.0]).start, K)
    linear = nth.TaylorizedFlow(network, problem, degree=1, **options)
    close(nth.integrate(linear, [T]).train[0], expected, atol=1e-6)
    moved = nth.displacement(network, problem, [T], **options)
    moved = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], moved))[0]
    close(f[:3] + J[:3] @ moved, expected, atol=1e-8)
    g = f
    for _ in range(STEPS):
        g = g - RATE * K @ (g[:3] - Y) / 3
    compared = nth.compare_discrete(
        network, problem, np.array([STEPS]), optax.sgd(RATE), (2,), **options
    )
    close(compared.solutions[2].train[0], g[:3])
    close(compared.solutions[2].test[0], g[3:])


@each(TRAINED)
def test_training_equals_runge_kutta_and_a_plain_loop(make):
    case = make()
    network, problem, options = case.network, case.problem, case.options
    outputs, jacobian, theta, *_ = reference(case)

    def field(theta):
        return -jacobian(theta)[:3].T @ (outputs(theta)[:3] - Y) / 3

    @jax.jit
    def runge_kutta(theta):
        h = T / 20

        def step(_, theta):
            k1 = field(theta)
            k2 = field(theta + h / 2 * k1)
            k3 = field(theta + h / 2 * k2)
            return theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(theta + h * k3))

        return jax.lax.fori_loop(0, 20, step, theta)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nth.WindowWarning)
        comparison = nth.compare(
            network, problem, [0.0, T], orders=(3,), method="matrix-free", **options
        )
    close(comparison.truth.train[-1], outputs(runge_kutta(theta))[:3], atol=1e-5)
    assert comparison.error(3)[-1] < 0.2
    trained = nth.train(network, problem, [STEPS], optax.sgd(RATE), **options)
    for _ in range(STEPS):
        theta = theta + RATE * field(theta)
    close(trained.train[0], outputs(theta)[:3])


def test_custom_vjp_works_where_reverse_mode_suffices():
    """Functions that need forward mode name the cure; the others work."""
    case = custom_vjp()
    network, problem = case.network, case.problem
    _, _, _, f, _, K = reference(case)
    close(nth.kernels(network, problem, order=2)[2], K)
    close(
        nth.max_learning_rate(network, problem), 6 / np.linalg.eigvalsh(K[:3])[-1], 1e-7
    )
    expected = Y + expm(-np.asarray(K[:3]) * T / 3) @ (f[:3] - Y)
    dense = nth.solve(network, problem, [T], order=2, method="dense")
    close(dense.train[0], expected, atol=1e-6)
    assert jnp.isfinite(nth.gradient_flow(network, problem, [T]).loss)
    assert jnp.isfinite(nth.train(network, problem, [1], optax.sgd(0.1)).loss)
    refused = (
        lambda: nth.kernels(network, problem, order=3),
        lambda: nth.solve(network, problem, [T], order=2, method="matrix-free"),
        lambda: nth.solve_discrete(network, problem, [1], optax.sgd(0.1), order=2),
        lambda: nth.TaylorizedFlow(network, problem, degree=1),
        lambda: nth.contract(network, problem, [Y], order=2),
        lambda: nth.project(network, problem, 1, order=3),
        lambda: nth.theory.laziness(network, problem),
    )
    for call in refused:
        with pytest.raises(
            ValueError, match=r"network has no forward-mode.*custom_jvp"
        ):
            call()


def by_callback(w, x):
    shape = jax.ShapeDtypeStruct((), w.dtype)
    return jax.pure_callback(lambda z: np.tanh(z), shape, jnp.vdot(w, x))


def by_while_loop(w, x):
    def body(carry):
        return carry[0] + 1, jnp.tanh(carry[1])

    start = (0, jnp.vdot(w, x))
    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, start)[1]


@pytest.mark.parametrize("apply", [by_callback, by_while_loop])
def test_a_network_without_a_gradient_is_refused(apply):
    network = nth.from_apply(apply, draw(3))
    problem = nth.Problem(X[:3], Y)
    for call in (
        lambda: nth.kernels(network, problem, order=2),
        lambda: nth.gradient_flow(network, problem, [1.0]),
        lambda: nth.max_learning_rate(network, problem),
    ):
        with pytest.raises(ValueError, match=r"network has no gradient .* Error: "):
            call()


def test_a_batch_that_mixes_points_is_refused():
    variables = linen_variables()

    def apply(variables, x):
        return LinenNet(average=False).apply(variables, x, mutable=["batch_stats"])[0]

    params = {"params": variables["params"]}

    def mixed(params, x):
        return apply({**variables, **params}, x)

    network = nth.from_apply(mixed, params, batched=True)
    for problem in (nth.Problem(X[:3], Y, X[3:]), nth.Problem(X[:1], Y[:1])):
        with pytest.raises(
            ValueError, match="with batched=True it is not a function of"
        ):
            nth.kernels(network, problem, order=2)


def test_a_batched_function_of_one_size_is_refused():
    def apply(w, x):
        return x.reshape(1, 3) @ w

    network = nth.from_apply(apply, draw(3), batched=True)
    with pytest.raises(ValueError, match="network failed on a batch of 3 points"):
        nth.kernels(network, nth.Problem(X[:3], Y), order=2)


def test_nnx_in_training_mode_is_refused():
    x = X.astype(jnp.float32)
    problem = nth.Problem(x[:3], Y.astype(jnp.float32))
    network: Any = NNXNet(nnx.Rngs(0), jnp.float32)
    with pytest.raises(ValueError, match=r"changes its own variables.*network\.eval"):
        nth.kernels(network, problem, order=2)
    network.norm.use_running_average = True  # only dropout
    with pytest.raises(ValueError, match=r"changes its own variables.*network\.eval"):
        nth.gradient_flow(network, problem, [1.0])


def test_statistics_that_would_be_trained_are_named():
    problem = nth.Problem(X[:3], Y)
    linen = nth.from_apply(LinenNet().apply, linen_variables())
    with pytest.warns(UserWarning, match=r"batch_stats'\]\['BatchNorm_0'\]\['mean'\]"):
        nth.kernels(linen, problem, order=2)
    with pytest.warns(UserWarning, match=r"\.state would be trained"):
        nth.kernels(with_statistics(), problem, order=2)


def test_a_flax_module_without_variables_is_refused():
    with pytest.raises(ValueError, match=r"no trainable array.*nth\.from_apply"):
        nth.kernels(cast(Any, LinenNet()), nth.Problem(X[:3], Y), order=2)


def test_derivatives_with_respect_to_nnx_parameters():
    """Derivatives with respect to the parameters of a network that holds variables."""
    problem = nth.Problem(X[:3], Y)
    network: Any = NNXNet(nnx.Rngs(0))
    network.eval()
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def trace_of(params, rest):
        applied = nth.from_apply(lambda p, x: nnx.merge(graphdef, p, rest)(x), params)
        return jnp.trace(nth.kernels(applied, problem, order=2)[2])

    value, slope = jax.jit(jax.value_and_grad(trace_of))(params, rest)
    close(value, jnp.trace(nth.kernels(network, problem, order=2)[2]))
    direction = jax.tree.map(jnp.ones_like, params)
    h = 1e-6
    up, down = (
        trace_of(jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction), rest)
        for s in (1, -1)
    )
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(slope))
    np.testing.assert_allclose(total, (up - down) / (2 * h), rtol=1e-6)
