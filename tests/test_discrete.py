"""Discrete training with linear optimizers: batches, eq. 29 by brute force, the flow as
limit, the validity window, and the trained network."""

import math
import warnings
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth

KEY = jax.random.key(5)
LABELS = make_problem(4, 1, outputs=2, loss=nth.SoftmaxCrossEntropy())
PAIR = make_network(4, 1, outputs=2, use_bias=True)
SCALAR, NETWORK = make_problem(4, 1), make_network(5, 1)


def assert_trees_close(actual, expected, atol):
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def decayed(weight_decay, *args, **options):
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(*args, **options)
    )


# ---------------------------------------------------------------- steps and batches


def test_requested_steps_are_a_subset_of_all_steps():
    optimizer = optax.sgd(0.3, momentum=0.5)
    whole = nth.solve_discrete(NETWORK, SCALAR, 7, optimizer, order=2)
    some = nth.solve_discrete(NETWORK, SCALAR, [2, 3, 7], optimizer, order=2)
    requested = np.array([2, 3, 7])
    np.testing.assert_array_equal(some.ts, requested)
    np.testing.assert_allclose(some.train, whole.train[requested], atol=1e-14)
    np.testing.assert_allclose(some.test, whole.test[requested], atol=1e-14)
    none = nth.solve_discrete(NETWORK, SCALAR, 0, optimizer, order=2)
    np.testing.assert_allclose(none.train, jax.vmap(NETWORK)(SCALAR.x_train)[None])


@pytest.mark.parametrize("loss", [None, nth.SoftmaxCrossEntropy()])
def test_batches_of_an_epoch_do_not_overlap(loss):
    """A step from θ = 0 changes a linear network at the points of its batch only."""
    n = 7
    x, y = np.eye(n), np.ones((n, 2))
    if loss is not None:
        y = np.zeros(n, int)
    problem = nth.Problem(x, y, loss=loss or nth.SquaredError())
    network = eqx.nn.Linear(n, 2, use_bias=False, key=KEY)
    network = eqx.tree_at(lambda net: net.weight, network, jnp.zeros((2, n)))
    optimizer, batches = optax.sgd(1.0), {"batch_size": 3, "key": KEY}
    moves = np.diff(nth.train(network, problem, 6, optimizer, **batches).train, axis=0)
    seen = np.abs(moves[:, :, 0]) > 1e-12
    first, others = seen[:2], seen[2:]
    np.testing.assert_array_equal(seen.sum(axis=1), 3)
    for epoch in (first, others[:2], others[2:]):  # one of seven left out of each
        assert epoch.any(axis=0).sum() == 6
    assert any((first != epoch).any() for epoch in (others[:2], others[2:]))
    # The mean of the batch, at θ = 0: (f − y)/3, or softmax minus one over 3.
    expected = 1 / 3 if loss is None else 0.5 / 3
    np.testing.assert_allclose(moves[0, seen[0], 0], expected, rtol=1e-12)
    # A level sees the same batches: a linear network is its own level 2.
    level = nth.solve_discrete(network, problem, 6, optimizer, order=2, **batches)
    truth = nth.train(network, problem, 6, optimizer, **batches)
    np.testing.assert_allclose(level.train, truth.train, atol=1e-13)
    # The same batches, given explicitly.
    given = np.argsort(~seen, axis=1, kind="stable")[:, :3]
    again = nth.train(network, problem, 6, optimizer, batches=given)
    np.testing.assert_allclose(again.train, truth.train, atol=1e-13)


def test_a_batch_of_all_points_equals_full_batch_training():
    optimizer = decayed(0.01, 0.4, momentum=0.5)
    full, batched = (
        nth.solve_discrete(PAIR, LABELS, 4, optimizer, order=2, **batches)
        for batches in ({}, {"batch_size": 4, "key": KEY})
    )
    np.testing.assert_allclose(full.train, batched.train, atol=1e-13)


# ---------------------------------------------------------------- eq. 29, brute force


def word_tensors(f, order):
    """θ ↦ the kernels of each word (s_1, …, s_j), Σ s ≤ p − 1.

    S_s T is the s-th derivative of T along s directions ∇f_β held constant, as in
    eq. 29, whose 𝒦⁽ʳ⁾ is the word (1, r − 2).
    """

    def gradients(theta):
        return jax.jacrev(lambda theta: f(theta).ravel())(theta)

    def step_derivative(tensor, s, theta):
        held = gradients(theta)

        def derivative(tensor, s):
            if s == 0:
                return tensor
            lower = derivative(tensor, s - 1)

            def along(direction):
                return lambda at: jax.jvp(lower, (at,), (direction,))[1]

            return lambda at: jax.vmap(lambda d: along(d)(at), out_axes=-1)(held)

        return derivative(tensor, s)(theta)

    words: dict[tuple[int, ...], Any] = {(): f}
    for word in [w for k in range(1, order) for w in compositions(k)]:
        words[word] = partial(step_derivative, words[word[:-1]], list(word)[-1])
    return words


def compositions(total):
    """The compositions of `total`, its ordered sums."""
    if total == 0:
        return [()]
    return [
        (*head, last)
        for last in range(1, total + 1)
        for head in compositions(total - last)
    ]


def by_tensors(f, theta, order, gradient, rates):
    """T_w ← Σ_s (−η)ˢ/s! T_{w,s} · gˢ, over words of at most p − 1 gradients."""
    words = word_tensors(f, order)
    values = {word: tensor(theta) for word, tensor in words.items()}
    outputs = [values[()]]
    for step, rate in enumerate(rates):
        g = gradient(values[()], step).ravel()
        new = {}
        for word in values:
            total = values[word]
            for s in range(1, order - sum(word)):
                term = values[(*word, s)]
                for _ in range(s):
                    term = term @ g
                total = total + (-rate) ** s / math.factorial(s) * term
            new[word] = total
        values = new
        outputs.append(values[()])
    return jnp.stack(outputs)


@pytest.mark.parametrize(("order", "batch"), [(3, 2), (4, None)])
def test_equals_the_tensor_form_of_the_discrete_hierarchy(order, batch):
    x = jax.random.normal(KEY, (3, 2))
    problem = nth.Problem(x, jnp.array([0, 1, 0]), loss=nth.SoftmaxCrossEntropy())
    network = make_network(2, 1, 2, outputs=2, sigma_w=1.5)
    theta, unravel = ravel_pytree(network)
    schedule = optax.linear_schedule(0.9, 0.3, 4)
    optimizer, rows = optax.sgd(schedule), None
    if batch is not None:
        rows = np.array([[0, 2], [1, 1], [2, 1], [0, 1]])
    solution = nth.solve_discrete(
        network, problem, 4, optimizer, order=order, batches=rows
    )
    one_hot = jnp.eye(2)[problem.y_train]

    def gradient(outputs, step):
        seen = jnp.ones(3) if rows is None else jnp.zeros(3).at[rows[step]].add(1.0)
        error = jax.nn.softmax(outputs) - one_hot
        return seen[:, None] * error / jnp.sum(seen)

    @jax.jit
    def expected(theta):
        def f(theta):
            return jax.vmap(unravel(theta))(problem.x_train)

        rates = [jnp.asarray(schedule(jnp.int32(s)), float) for s in range(4)]
        return by_tensors(f, theta, order, gradient, rates)

    outputs = expected(theta)
    np.testing.assert_allclose(solution.train, outputs, rtol=0, atol=1e-12)
    assert np.max(np.abs(outputs[-1] - outputs[0])) > 0.05
    truth = nth.train(network, problem, 4, optimizer, batches=rows).train
    assert np.max(np.abs(truth - outputs)) > 1e-6  # a truncation, not the network


# ---------------------------------------------------------------- limits and levels


def test_a_plain_step_is_an_euler_step_of_the_flow():
    """With weight decay and learning rates, as tested for the flow."""
    rates = eqx.tree_at(
        lambda net: net.weights[0], jax.tree.map(lambda _: 1.0, NETWORK), 0.4
    )
    flow = nth.MatrixFreeHierarchy(
        NETWORK, SCALAR, order=3, learning_rates=rates, weight_decay=0.2
    )
    field = eqx.filter_jit(flow.vector_field)
    state = flow.initial_state()
    for _ in range(3):
        rate = field(jnp.zeros(()), state, None)
        state = jax.tree.map(lambda s, r: s + 0.3 * r, state, rate)
    optimizer = decayed(0.2, 0.3)
    solution = nth.solve_discrete(
        NETWORK, SCALAR, [3], optimizer, order=3, learning_rates=rates
    )
    assert_trees_close(solution.state, state, 1e-14)


EVERYTHING = decayed(
    0.01, optax.linear_schedule(0.4, 0.2, 3), momentum=0.5, nesterov=True
)


def test_errors_decrease_with_level_and_width():
    errors = {}
    for width, orders in ((4, (2, 3, 4)), (64, (4,))):
        network = make_network(width, 1, outputs=2, seed=1)
        comparison = nth.compare_discrete(
            network, LABELS, 4, EVERYTHING, orders, batch_size=2, key=KEY
        )
        for p in orders:
            errors[width, p] = float(jnp.max(comparison.error(p, "train")))
    assert errors[4, 3] < errors[4, 2] / 2
    assert errors[4, 4] < errors[4, 3] / 2
    assert 1e-12 < errors[64, 4] < errors[4, 4] / 4
    lines = str(comparison)
    assert "step" in lines
    assert comparison.clock == "step"
    axes = comparison.plot().axes
    assert {axis.get_xlabel() for axis in axes} == {"step"}


def test_predict_equals_a_solve_with_the_new_points():
    optimizer = decayed(0.1, 0.4, momentum=0.5)
    x_new = make_problem(1, 3, seed=7).x_test
    requested = nth.Problem(SCALAR.x_train, SCALAR.y_train, x_new)
    expected = nth.solve_discrete(NETWORK, requested, [5], optimizer, order=3).test[0]
    state = nth.solve_discrete(NETWORK, SCALAR, [5], optimizer, order=3).state
    predicted = nth.MatrixFreeHierarchy(NETWORK, SCALAR, order=3).predict(state, x_new)
    np.testing.assert_allclose(predicted, expected, atol=1e-13)
    assert np.max(np.abs(predicted - jax.vmap(NETWORK)(x_new))) > 1e-2


# ---------------------------------------------------------------- transforms, dtypes


def test_jit_vmap_and_gradient_agree_with_single_solves():
    @jax.jit
    @jax.vmap
    def last_outputs(rate):
        optimizer = decayed(0.1, rate, momentum=0.5)
        return nth.solve_discrete(NETWORK, SCALAR, [3], optimizer, order=2).train[0]

    def total(rate):
        optimizer = decayed(0.1, rate, momentum=0.5)
        solution = nth.solve_discrete(NETWORK, SCALAR, [3], optimizer, order=2)
        return jnp.sum(solution.train), solution.train[0]

    rates = jnp.array([0.2, 0.4])
    together = last_outputs(rates)
    for i, rate in enumerate(rates):
        np.testing.assert_allclose(together[i], total(rate)[1], atol=1e-13)
    slope = jax.grad(lambda rate: total(rate)[0])(0.2)
    step = 1e-5
    expected = (total(0.2 + step)[0] - total(0.2 - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-7)


def as_float32(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree
    )


def test_float32_is_kept_and_agrees_with_float64():
    optimizer, batches = decayed(0.1, 0.3, momentum=0.5), {"batch_size": 2, "key": KEY}
    small = as_float32(PAIR), as_float32(LABELS)
    for function in (partial(nth.solve_discrete, order=2), nth.train):
        solution = function(*small, 3, optimizer, **batches)
        arrays = [
            solution.train,
            solution.test,
            solution.loss,
            *jax.tree.leaves(solution.state),
        ]
        assert {array.dtype for array in arrays} == {jnp.dtype("float32")}
        expected = function(PAIR, LABELS, 3, optimizer, **batches)
        np.testing.assert_allclose(solution.train, expected.train, atol=1e-5)


def test_new_data_do_not_recompile():
    traces = []

    class Counted(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            traces.append(1)
            return jnp.tanh(self.w @ x)

    def run(seed, rate):
        problem = make_problem(4, 1, seed=seed)
        network = Counted(jax.random.normal(jax.random.key(seed), (3,)))
        optimizer = decayed(rate / 9, rate, momentum=rate)
        before = len(traces)
        nth.train(network, problem, 4, optimizer, batch_size=2, key=KEY)
        return len(traces) - before

    first, again = run(0, 0.3), run(1, 0.2)
    # The checks trace the network once; the loop is not traced again.
    assert again <= 1 < first


# ---------------------------------------------------------------- the window


def test_a_level_past_its_window_warns():
    far = nth.Problem(SCALAR.x_train, 6 * SCALAR.y_train)
    optimizer = optax.sgd(0.5)
    with pytest.warns(nth.WindowWarning, match="level-3 .*left its window at step"):
        solution = nth.solve_discrete(NETWORK, far, 60, optimizer, order=3)
    truth = nth.train(NETWORK, far, 60, optimizer)
    step = int(solution.valid_until)
    assert 0 < step < 60
    error = np.linalg.norm(solution.train - truth.train, axis=1)
    change = np.linalg.norm(truth.train - truth.train[:1], axis=1)
    assert error[step] > 0.1 * change[step]
    assert np.all(error[: step // 4] < 0.1 * (1e-12 + change[: step // 4]))


def test_divergence_warns_and_is_nan():
    rate = 3 * nth.max_learning_rate(NETWORK, SCALAR)
    optimizer = optax.sgd(rate)
    with pytest.warns(nth.WindowWarning) as caught:
        solution = nth.solve_discrete(NETWORK, SCALAR, 60, optimizer, order=2)
    messages = " ".join(str(warning.message) for warning in caught)
    assert "beyond" in messages
    assert "on they are NaN" in messages
    last = int(solution.stats["last_time"])
    assert np.all(np.isfinite(solution.train[: last + 1]))
    assert np.all(np.isnan(solution.train[last + 1 :]))
    assert solution.valid_until <= last + 1 < 60
    diverging = make_network(5, 1, activation="linear")
    with pytest.warns(RuntimeWarning, match="training diverges to infinite outputs"):
        truth = nth.train(diverging, SCALAR, 60, optimizer)
    assert np.isnan(truth.train[-1]).all()
    assert np.isinf(truth.valid_until)


def test_an_increasing_loss_alone_does_not_warn():
    """A wide network at a moderate rate: no warning, although the loss increases."""
    network = make_network(16, 1)
    rate = 0.4 * nth.max_learning_rate(network, SCALAR)
    optimizers = (
        (optax.sgd(rate, momentum=0.8), {}),
        (optax.sgd(rate), {"batch_size": 1, "key": KEY}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for optimizer, batches in optimizers:
            solution = nth.solve_discrete(
                network, SCALAR, 8, optimizer, order=4, **batches
            )
            assert np.any(np.diff(solution.loss) > 0)
            assert np.isinf(solution.valid_until)
