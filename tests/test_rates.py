"""Learning rates of each layer, weight decay in continuous time, critical learning
rates, and the catapult map."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import nth as typed_nth

nth: Any = typed_nth  # some arguments of wrong types are intended
KEY = jax.random.key(3)
NOW = jnp.zeros(())
SCALAR = make_problem(4, 1)
LABELS = make_problem(3, 1, outputs=2, loss=typed_nth.SoftmaxCrossEntropy())
WIDTH, SIZE, SIGMA, SIGMA_B = 4, 3, 1.3, 0.4


# ---------------------------------------------------------------- rates of each layer


def two_parameterizations():
    """One function as "standard" and as "ntk", and the learning rates with which both
    train equally: W = σ V/√fan_in and b = σ_b c, so dW/dt = −(σ²/fan_in) ∂L/∂W."""
    options: dict[str, Any] = {
        "outputs": 2,
        "use_bias": True,
        "sigma_w": SIGMA,
        "sigma_b": SIGMA_B,
    }
    ntk = make_network(WIDTH, 1, SIZE, parameterization="ntk", **options)
    standard = make_network(WIDTH, 1, SIZE, parameterization="standard", **options)
    scales = (SIGMA / SIZE**0.5, 1 / WIDTH**0.5)
    weights = tuple(s * w for s, w in zip(scales, ntk.weights, strict=True))
    biases = tuple(SIGMA_B * b for b in jax.tree.leaves(ntk.biases))
    standard = eqx.tree_at(
        lambda net: (net.weights, net.biases), standard, (weights, biases)
    )
    rates = eqx.tree_at(
        lambda net: (net.weights, net.biases),
        standard,
        (tuple(s**2 for s in scales), SIGMA_B**2),  # a prefix: one rate for all biases
        is_leaf=lambda leaf: leaf is None,
    )
    return ntk, standard, rates


def test_standard_with_rescaled_rates_is_ntk():
    """Kernels, both flows and training are equal up to rounding error."""
    ntk, standard, rates = two_parameterizations()
    reference = nth.kernels(ntk, LABELS, order=3)
    result = nth.kernels(standard, LABELS, order=3, learning_rates=rates)
    for r in (1, 2, 3):
        np.testing.assert_allclose(result[r], reference[r], rtol=0, atol=1e-13)
    assert not np.allclose(nth.kernels(standard, LABELS, order=2)[2], reference[2])

    @eqx.filter_jit
    def speed_of(dynamics):
        state = dynamics.initial_state()
        rate = dynamics.vector_field(NOW, state, None)
        return jax.jvp(dynamics.outputs, (state,), (rate,))[1]

    def speed(network, **options):
        out = []
        for dynamics in (
            nth.GradientFlow(network, LABELS, **options),
            nth.MatrixFreeHierarchy(network, LABELS, order=2, **options),
        ):
            out.append(speed_of(dynamics))
        return out

    for actual, expected in zip(
        speed(standard, learning_rates=rates), speed(ntk), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
    optimizer = optax.sgd(0.7, momentum=0.5)
    for function, options in (
        (nth.train, {}),
        (nth.solve_discrete, {"order": 2}),
    ):
        actual = function(
            standard, LABELS, 4, optimizer, learning_rates=rates, **options
        )
        expected = function(ntk, LABELS, 4, optimizer, **options)
        np.testing.assert_allclose(actual.test, expected.test, rtol=0, atol=1e-12)
        assert np.max(np.abs(actual.test[-1] - actual.test[0])) > 1e-2
    result, reference = (
        nth.max_learning_rate(standard, LABELS, learning_rates=rates),
        nth.max_learning_rate(ntk, LABELS),
    )
    np.testing.assert_allclose(result, reference, rtol=1e-9)


def test_a_rate_of_zero_freezes_parameters():
    network = make_network(3, 1)
    rates = eqx.tree_at(
        lambda net: net.weights, jax.tree.map(lambda _: 1.0, network), (0.0, 1.0)
    )
    spec = eqx.tree_at(
        lambda net: net.weights, jax.tree.map(lambda _: False, network), (False, True)
    )
    frozen = nth.kernels(network, SCALAR, order=3, filter_spec=spec)
    constant = nth.kernels(network, SCALAR, order=3, learning_rates=rates)
    for actual, expected in zip(constant, frozen, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-14)
    # Frozen leaves need no learning rate.
    both = nth.kernels(network, SCALAR, order=2, filter_spec=spec, learning_rates=2.0)
    np.testing.assert_allclose(both[2], 2 * frozen[2], atol=1e-14)


def test_a_rate_may_be_an_array():
    """A rate for each row of a matrix, against an explicit J M Jᵀ."""
    network = make_network(3, 1)
    rows = jnp.array([[0.5], [1.0], [2.0]])
    whole = jnp.broadcast_to(rows, (3, 3))
    rates = eqx.tree_at(
        lambda net: net.weights, jax.tree.map(lambda _: 1.0, network), (rows, 3.0)
    )
    k = nth.kernels(network, SCALAR, order=2, learning_rates=rates)[2]

    def jacobian(x):
        slope = eqx.filter_grad(lambda net: net(x))(network)
        w, a = slope.weights
        return jnp.concatenate([(jnp.sqrt(whole) * w).ravel(), (3**0.5 * a).ravel()])

    j = jax.jit(jax.vmap(jacobian))(SCALAR.x)
    np.testing.assert_allclose(k, j @ j[:4].T, atol=1e-13)


# ---------------------------------------------------------------- weight decay


@pytest.mark.parametrize(("depth", "degree", "truth"), [(1, 2, False), (2, 3, True)])
def test_decay_of_a_homogeneous_network_is_the_closed_form(depth, degree, truth):
    """For f of degree k in θ, K⁽ʳ⁾ has degree r(k − 2) + 2, so that at level p
    dK⁽ʳ⁾/dt = −K⁽ʳ⁺¹⁾·g − λ (r(k − 2) + 2) K⁽ʳ⁾, with K⁽ᵖ⁺¹⁾ = 0."""
    order, decay, last = 3, 0.3, 1.5
    network = make_network(3, depth, activation="relu")
    problem = make_problem(3, 1)
    formed = nth.kernels(network, problem, order=order)
    shapes = [k.shape for k in formed]
    sizes = np.cumsum([0, *(k.size for k in formed)])

    def closed(t, flat):
        tensors = [
            flat[start:stop].reshape(shape)
            for start, stop, shape in zip(sizes, sizes[1:], shapes, strict=False)
        ]
        g = (tensors[0][:3] - problem.y_train) / 3
        rates = [-decay * (r * (degree - 2) + 2) * k for r, k in enumerate(tensors, 1)]
        for r in range(order - 1):
            rates[r] = rates[r] - tensors[r + 1] @ g
        return np.concatenate([rate.ravel() for rate in rates])

    start = np.concatenate([np.asarray(k).ravel() for k in formed])
    expected = solve_ivp(closed, (0, last), start, "DOP853", rtol=1e-10, atol=1e-12)
    solution = nth.solve(network, problem, [last], order=order, weight_decay=decay)
    outputs = jnp.concatenate([solution.train[0], solution.test[0]])
    np.testing.assert_allclose(outputs, expected.y[:4, -1], rtol=0, atol=1e-6)
    assert solution.stats["method"] == "matrix-free"
    if truth:  # the trained network, which decay changes
        decayed = nth.gradient_flow(network, problem, [last], weight_decay=decay)
        without = nth.gradient_flow(network, problem, [last])
        error = np.max(np.abs(decayed.train - solution.train))
        assert error < 0.2 * np.max(np.abs(decayed.train - without.train))


def test_window_of_decay_is_that_of_loss_and_penalty():
    """From a fit the loss increases, but the sum of loss and penalty decreases."""
    network = make_network(8, 1)
    fitted = nth.Problem(SCALAR.x_train, jax.vmap(network)(SCALAR.x_train))
    solution = nth.solve(network, fitted, [0.0, 0.5, 1.0], order=2, weight_decay=0.1)
    assert np.all(np.diff(solution.loss) > 1e-4)
    assert np.isinf(solution.valid_until)
    hierarchy = nth.MatrixFreeHierarchy(network, fitted, order=2, weight_decay=0.1)
    theta = jax.tree.leaves(hierarchy.params)
    penalty = 0.05 * sum(float(jnp.sum(leaf**2)) for leaf in theta)
    np.testing.assert_allclose(hierarchy.penalty(hierarchy.initial_state()), penalty)


# ---------------------------------------------------------------- critical rates


def test_critical_rate_is_that_of_the_ntk():
    """2n/λ_max(K⁽²⁾) for the squared error; by the Hessian of the loss for others."""
    network = make_network(6, 2)
    k = np.asarray(nth.kernels(network, SCALAR, order=2)[2][:4])
    expected = 2 * 4 / np.linalg.eigvalsh(k).max()
    np.testing.assert_allclose(
        nth.max_learning_rate(network, SCALAR), expected, rtol=1e-10
    )
    pair = make_network(6, 2, outputs=2)
    f, k = list(nth.kernels(pair, LABELS, order=2))
    fraction = np.asarray(jax.nn.softmax(f[:3]))
    hessian = np.zeros((3, 2, 3, 2))
    for i, p in enumerate(fraction):
        hessian[i, :, i, :] = (np.diag(p) - np.outer(p, p)) / 3
    product = np.asarray(k[:3]).reshape(6, 6) @ hessian.reshape(6, 6)
    expected = 2 / np.linalg.eigvals(product).real.max()
    np.testing.assert_allclose(
        nth.max_learning_rate(pair, LABELS), expected, rtol=1e-10
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.6},
        {"momentum": 0.6, "nesterov": True},
        {"momentum": 0.6, "weight_decay": 0.5},
    ],
)
def test_training_diverges_above_the_critical_rate_only(options):
    """For a linear network: training converges just below, and diverges just above."""
    network = eqx.nn.Linear(3, "scalar", use_bias=False, key=KEY)
    optimizer = decayed_sgd(1.0, **options)
    critical = nth.max_learning_rate(network, SCALAR, optimizer)
    ends = []
    for fraction in (0.99, 1.01):
        optimizer = decayed_sgd(fraction * critical, **options)
        outputs = nth.train(network, SCALAR, [2000, 2001], optimizer).train
        ends.append(float(jnp.max(jnp.abs(jnp.diff(outputs, axis=0)))))
    assert ends[0] < 1e-3
    assert ends[1] > 1e3


def decayed_sgd(rate, weight_decay=0.0, **options):
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(rate, **options)
    )


def test_lanczos_agrees_with_the_full_kernel():
    """The Lanczos method on 300 points, in both precisions."""
    x = np.random.default_rng(0).normal(size=(300, 3))
    problem = nth.Problem(x, np.ones(300))
    network = make_network(5, 1)

    @jax.jit
    @jax.vmap
    def jacobian(x):
        return ravel_pytree(eqx.filter_grad(lambda net: net(x))(network))[0]

    j = jacobian(problem.x_train)
    expected = 600 / np.linalg.eigvalsh(np.asarray(j @ j.T)).max()
    result = nth.max_learning_rate(network, problem)
    np.testing.assert_allclose(result, expected, rtol=1e-9)
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (network, problem))
    actual = nth.max_learning_rate(*small)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


# ---------------------------------------------------------------- the catapult map


@pytest.mark.parametrize(
    ("fraction", "phase", "target"),
    [
        (0.5, "lazy", 0.0),
        (1.4, "catapult", 0.0),
        (0.5, "lazy", 0.7),
        (2.5, "divergent", 0.0),
    ],
)
def test_catapult_map_equals_the_trained_network(fraction, phase, target):
    width = 64
    network = make_network(width, 1, 1, activation="linear")
    problem = nth.Problem(jnp.ones((1, 1)), jnp.full((1,), target))
    f, ntk = (k.ravel()[0] for k in nth.kernels(network, problem, order=2))
    critical = nth.max_learning_rate(network, problem)
    np.testing.assert_allclose(critical, 2 / ntk, rtol=1e-12)
    steps = 6 if phase == "divergent" else 60
    result = nth.catapult(f, ntk, fraction * critical, width, steps, target=target)
    assert result.phase == phase
    optimizer = optax.sgd(fraction * critical)
    truth = nth.train(network, problem, steps, optimizer)
    np.testing.assert_allclose(result.outputs, truth.train[:, 0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(result.loss, truth.loss, rtol=1e-8, atol=1e-8)
    trained = eqx.combine(truth.state, network)
    np.testing.assert_allclose(
        result.ntk[-1], nth.kernels(trained, problem, order=2)[2].ravel()[0], rtol=1e-8
    )
    if phase == "catapult":
        assert np.max(result.loss) > 2 * result.loss[0]
        assert result.loss[-1] < 1e-6
        assert result.ntk[-1] < critical * ntk / (fraction * critical)  # λ ≤ 2/η


def test_catapult_limits():
    """Divergence beyond 4/λ; at infinite width the NTK is constant, f a power."""
    beyond = nth.catapult(1.0, 1.0, 4.5, 100, 200)
    assert beyond.phase == "divergent"
    assert not np.isfinite(beyond.outputs[-1])
    wide = nth.catapult(1.0, 1.0, 1.5, 10**12, 10)
    np.testing.assert_allclose(wide.outputs, (-0.5) ** np.arange(11), rtol=1e-9)


# ---------------------------------------------------------------- bad arguments

PLAIN = optax.sgd(0.1)
SMALL = make_network(3, 1)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("batch_size and key go together", lambda: descend(3, batch_size=2)),
        ("batch_size and key go together", lambda: descend(3, key=KEY)),
        (
            "batch_size must be at least 1; got 0",
            lambda: descend(3, batch_size=0, key=KEY),
        ),
        (
            "batch_size must be at most 4, the number of training points; got 9",
            lambda: descend(3, batch_size=9, key=KEY),
        ),
        (
            "give one or the other",
            lambda: descend(3, batch_size=2, key=KEY, batches=np.ones((3, 2), int)),
        ),
        ("of shape (steps, batch size)", lambda: descend(3, batches=np.ones(3, int))),
        ("batches must be integers", lambda: descend(3, batches=np.ones((3, 2)))),
        (
            "batches must have a row for each of the 3 steps; got 2",
            lambda: descend(3, batches=np.ones((2, 2), int)),
        ),
        (
            "training points, 0 to 3",
            lambda: descend(3, batches=np.full((3, 2), 4)),
        ),
        ("optimizer must be an optax.GradientTransf", lambda: descend(3, 0.1)),
        (
            "optimizer: its update failed",
            lambda: descend(3, optax.lbfgs()),
        ),
        (
            "optimizer: its init failed",
            lambda: descend(3, optax.multi_transform({}, {"other": "tree"})),
        ),
        (
            "optimizer: its update gives updates of another",
            lambda: descend(3, optax.stateless(lambda g, _: jax.tree.leaves(g))),
        ),
        ("steps must be a number of steps, or an", lambda: descend(2.5, PLAIN)),
        ("steps must be at least 0; got -1", lambda: descend(-1, PLAIN)),
        ("steps must be increasing", lambda: descend([0, 2, 2], PLAIN)),
        ("steps must be a number of steps, or an", lambda: descend([], PLAIN)),
        (
            "order must be at least 2",
            lambda: nth.solve_discrete(SMALL, SCALAR, 2, PLAIN, order=1),
        ),
        (
            "weight_decay must be finite",
            lambda: nth.GradientFlow(SMALL, SCALAR, weight_decay=-1),
        ),
        (
            'weight_decay: method="dense" has its kernels at the initial parameters',
            lambda: nth.solve(
                SMALL, SCALAR, [1.0], order=2, weight_decay=0.1, method="dense"
            ),
        ),
        (
            "learning_rates must be finite and at",
            lambda: nth.kernels(SMALL, SCALAR, order=2, learning_rates=-1.0),
        ),
        (
            "learning_rates must be a number, or a pytree",
            lambda: nth.kernels(SMALL, SCALAR, order=2, learning_rates=(1.0, 2.0)),
        ),
        (
            "learning_rates has a rate of shape (7,)",
            lambda: nth.kernels(SMALL, SCALAR, order=2, learning_rates=np.ones(7)),
        ),
        (
            "learning_rates must hold real numbers",
            lambda: nth.kernels(SMALL, SCALAR, order=2, learning_rates="fast"),
        ),
        ("width must be at least 1", lambda: nth.catapult(1.0, 1.0, 1.0, 0, 3)),
        (
            "ntk must be one number; got shape (2,)",
            lambda: nth.catapult(1.0, [1.0, 2.0], 1.0, 4, 3),
        ),
    ],
)
def test_bad_arguments_are_named(message, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def descend(steps, optimizer: Any = PLAIN, **options):
    return nth.train(SMALL, SCALAR, steps, optimizer, **options)
