"""Optimizers of Optax: the trained network against a plain Optax loop, linearity, and
the expansions against derivatives of unrolled training loops."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import make_network, make_problem
from jax.flatten_util import ravel_pytree

import nth
from nth._discrete.optimizer import traced
from nth._discrete.power_series import push
from nth._discrete.program import Program
from nth._dynamics.taylor_coefficients import by_jvp

KEY = jax.random.key(5)
LABELS = make_problem(4, 1, outputs=2, loss=nth.SoftmaxCrossEntropy())
PAIR = make_network(2, 1, outputs=2)


def by_layer(params: Any) -> Any:
    """Labels "first" and "other" of the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    labels = ["first"] + ["other"] * (len(leaves) - 1)
    return jax.tree.unflatten(treedef, labels)


def decayed(weight_decay: float, *args: Any, **options: Any) -> Any:
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(*args, **options)
    )


# These tests compare exact quantities, in networks too narrow for accurate levels.
narrow = pytest.mark.filterwarnings("ignore:the level-")

LINEAR: dict[str, Any] = {
    "sgd": optax.sgd(0.5),
    "momentum": optax.sgd(0.3, momentum=0.7),
    "nesterov": optax.sgd(0.3, momentum=0.7, nesterov=True),
    "decay": decayed(0.1, 0.3, momentum=0.5),
    "schedule": optax.sgd(optax.exponential_decay(0.5, 2, 0.5)),
    "average": optax.chain(optax.ema(0.9), optax.scale(-0.4)),
    "accumulation": optax.MultiSteps(optax.sgd(0.4), 2),
    "schedule-free": optax.contrib.schedule_free_sgd(0.2),
    "layers": optax.multi_transform(
        {"first": optax.sgd(0.1), "other": optax.sgd(0.2, momentum=0.9)}, by_layer
    ),
    "hyperparameters": optax.inject_hyperparams(optax.sgd)(learning_rate=0.3),
}

OTHERS: dict[str, Any] = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "rmsprop": optax.rmsprop(1e-2),
    "lion": optax.lion(3e-3, weight_decay=0.0),
    "adagrad": optax.adagrad(3e-2),
    "adafactor": optax.adafactor(1e-2),
    "clipping": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.3, 0.5)),
    "accumulated adam": optax.MultiSteps(optax.adam(1e-2), 2),
    "adam by layer": optax.multi_transform(
        {"first": optax.sgd(0.1), "other": optax.adam(1e-2)}, by_layer
    ),
    "noise": optax.noisy_sgd(0.1, key=7),
}


def by_optax(network: Any, problem: Any, number: int, optimizer: Any) -> Any:
    """The outputs after each step, by a plain loop."""

    def step(params: Any, state: Any) -> Any:
        def loss(network: Any) -> Any:
            return problem.loss(jax.vmap(network)(problem.x_train), problem.y_train)

        gradient = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step)
    state, outputs = optimizer.init(network), [jax.vmap(network)(problem.x)]
    for _ in range(number):
        network, state = step(network, state)
        outputs.append(jax.vmap(network)(problem.x))
    return jnp.stack(outputs)


def on_all(solution: nth.Solution) -> Any:
    return jnp.concatenate([solution.train, solution.test], axis=1)


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_train_equals_a_plain_optax_loop(name):
    optimizer = {**LINEAR, **OTHERS}[name]
    solution = nth.train(PAIR, LABELS, 5, optimizer)
    expected = by_optax(PAIR, LABELS, 5, optimizer)
    np.testing.assert_allclose(on_all(solution), expected, rtol=0, atol=1e-12)
    assert np.max(np.abs(expected[-1] - expected[0])) > 1e-3
    np.testing.assert_array_equal(solution.ts, np.arange(6))
    assert solution.stats["num_steps"] == solution.stats["num_evaluations"] == 5


# ---------------------------------------------------------------- linearity


@pytest.mark.parametrize("name", LINEAR)
def test_linear_optimizers_are_proved_linear(name):
    assert traced(LINEAR[name], PAIR).linear


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_not_linear(name):
    assert not traced(OTHERS[name], PAIR).linear


def a_transformation(update: Any, start: float = 0.0) -> Any:
    """A transformation of each gradient g with a state s: (g, s, θ) ↦ (u, s)."""

    def step(updates: Any, state: Any, params: Any = None) -> Any:
        each = jax.tree.map(lambda g, p: update(g, state, p), updates, params)
        first = jax.tree.leaves(each, is_leaf=lambda leaf: isinstance(leaf, tuple))[0]
        updates = jax.tree.map(
            lambda pair: pair[0], each, is_leaf=lambda leaf: isinstance(leaf, tuple)
        )
        return updates, first[1]

    def init(params: Any) -> Any:
        return jnp.full((), start)

    return optax.GradientTransformation(init, step)


@pytest.mark.parametrize(
    ("update", "linear", "moves"),
    [
        (lambda g, s, p: (-g, s), True, False),
        (lambda g, s, p: (-g * s, s + 1), True, False),
        (lambda g, s, p: (-g - 0.1 * p, s), True, True),
        (lambda g, s, p: (jnp.where(s > 2, g, 0.0), s + 1), True, False),
        (lambda g, s, p: (g - 1, s), False, None),
        (lambda g, s, p: (g * p, s), False, None),
        (lambda g, s, p: (g * s, s + jnp.sum(g)), False, None),
        (lambda g, s, p: (jnp.where(g > 0, g, 0.0), s), False, None),
        (lambda g, s, p: (g, 1 + jnp.sum(g)), False, None),
        (lambda g, s, p: (jnp.round(g), s), False, None),
        (lambda g, s, p: (g.astype(int).astype(float), s), False, None),
        (lambda g, s, p: (g / (1 + p), s), False, None),
        (lambda g, s, p: (jax.lax.cond(s > 2, jnp.sin, jnp.copy, g), s), False, None),
        (lambda g, s, p: (jax.lax.cond(s > 2, jnp.negative, jnp.copy, g), s), True, 0),
    ],
)  # fmt: skip
def test_linearity_is_read_from_the_program(update, linear, moves):
    result = traced(a_transformation(update), {"w": jnp.ones((2, 3))})
    assert result.linear == linear
    if linear:
        assert result.moves_start == moves


def test_a_nonzero_state_may_move_parameters_without_gradients():
    def update(g, s, p):
        return -s * jnp.ones_like(g), s + jnp.sum(g)

    params = {"w": jnp.ones(3)}
    assert traced(a_transformation(update, 1.0), params).moves_start
    assert not traced(a_transformation(update), params).moves_start


def test_programs_are_equal_for_all_hyperparameters():
    adam, same, other = (
        traced(optimizer, PAIR).program
        for optimizer in (optax.adam(0.1), optax.adam(0.2, b1=0.8), optax.rmsprop(0.1))
    )
    assert adam == same
    assert hash(adam) == hash(same)
    assert adam != other
    powers = [Program(jax.make_jaxpr(lambda x, n=n: x**n)(1.0).jaxpr) for n in (2, 3)]
    assert powers[0] != powers[1]


# ---------------------------------------------------------------- expansions


def unrolled(optimizer: Any, steps: int, order: int, linear: bool) -> Any:
    """Level p, by derivatives at ε = 0 of training loops in which ε multiplies every
    update, or, for a linear optimizer, every gradient.

    The output gradient of each step is that of the level.
    """
    start, unravel = ravel_pytree(PAIR)
    n = LABELS.n_train

    def outputs(theta: Any) -> Any:
        return jax.vmap(unravel(theta))(LABELS.x)

    def trained(eps: Any, slopes: list[Any]) -> Any:
        theta, state = start, optimizer.init(PAIR)
        after = [outputs(theta)]
        for slope in slopes:
            pull = jax.vjp(lambda theta: outputs(theta)[:n], theta)[1]
            gradient = unravel(pull(slope)[0] * (eps if linear else 1))
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, unravel(theta))
            update = ravel_pytree(updates)[0].astype(theta.dtype)
            theta = theta + update * (1 if linear else eps)
            after.append(outputs(theta))
        return jnp.stack(after)

    @jax.jit
    def level(slopes: list[Any]) -> Any:
        def derivatives(eps: Any) -> Any:
            return (trained(eps, slopes),)

        for _ in range(order - 1):
            derivatives = with_one_more(derivatives)
        values = derivatives(jnp.zeros(()))
        return sum(value / math.factorial(k) for k, value in enumerate(values))

    # Later slopes do not change the outputs of a step: one function for all of them.
    slopes, predicted = [jnp.zeros((n, 2))] * steps, []
    for step in range(steps + 1):
        predicted.append(level(slopes)[step])
        if step < steps:
            gradient = LABELS.loss.gradient(predicted[-1][:n], LABELS.y_train)
            slopes[step] = gradient
    return jnp.stack(predicted)


def with_one_more(derivatives: Any) -> Any:
    def more(eps: Any) -> Any:
        values, slopes = jax.jvp(derivatives, (eps,), (jnp.ones_like(eps),))
        return (*values, slopes[-1])

    return more


@narrow
@pytest.mark.parametrize(
    ("name", "order", "steps"),
    [
        ("adam", 2, 3),
        ("adam", 4, 3),
        ("adamw", 3, 3),
        ("rmsprop", 4, 2),
        ("adagrad", 3, 2),
        ("adafactor", 3, 2),
        ("clipping", 4, 2),
        ("lion", 3, 3),
        ("adam by layer", 3, 2),
        ("momentum", 4, 3),
        ("decay", 3, 3),
        ("schedule-free", 3, 3),
    ],
)
def test_a_level_is_the_taylor_polynomial_of_training(name, order, steps):
    optimizer = {**LINEAR, **OTHERS}[name]
    actual = on_all(nth.solve_discrete(PAIR, LABELS, steps, optimizer, order=order))
    expected = unrolled(optimizer, steps, order, name in LINEAR)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    truth = on_all(nth.train(PAIR, LABELS, steps, optimizer))
    assert 1e-9 < np.max(np.abs(truth - expected)) < np.max(np.abs(truth - truth[:1]))


@pytest.mark.parametrize(
    "name", ["momentum", "accumulation", "adam", "rmsprop", "lion"]
)
def test_level_2_is_the_linearized_network_under_the_same_optimizer(name):
    optimizer = {**LINEAR, **OTHERS}[name]
    theta, unravel = ravel_pytree(PAIR)

    def apply(params: Any, x: Any) -> Any:
        value, change = jax.jvp(
            lambda theta: unravel(theta)(x), (theta,), (params["w"] - theta,)
        )
        return value + change

    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs = jax.vmap(lambda x: apply(params, x))(LABELS.x_train)
            return LABELS.loss(outputs, LABELS.y_train)

        gradient = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, step = {"w": theta}, jax.jit(step)
    state = optimizer.init(params)
    for _ in range(4):
        params, state = step(params, state)
    expected = jax.vmap(lambda x: apply(params, x))(LABELS.x)
    actual = on_all(nth.solve_discrete(PAIR, LABELS, [4], optimizer, order=2))[0]
    # Accumulation stores in float32, whose rounding differs.
    atol = 1e-7 if name == "accumulation" else 1e-12
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
    assert np.max(np.abs(expected - jax.vmap(PAIR)(LABELS.x))) > 1e-2


@narrow
def test_parameters_without_a_gradient_are_constant():
    """If an input is always 0, so is the second moment, whose root has no slope."""
    x = LABELS.x.at[:, 1].set(0.0)
    zero_input = nth.Problem(x[:4], LABELS.y_train, x[4:], loss=LABELS.loss)
    small = nth.Problem(x[:4, ::2], LABELS.y_train, x[4:, ::2], loss=LABELS.loss)
    network = nth.MLP(3, 2, 1, out_size=2, key=KEY, parameterization="standard")
    weights = network.weights[0]
    cut = nth.MLP(2, 2, 1, out_size=2, key=KEY, parameterization="standard")
    cut = eqx.tree_at(
        lambda net: net.weights, cut, [weights[:, ::2], *network.weights[1:]]
    )
    with_zero_input, without = (
        nth.solve_discrete(net, problem, 3, optax.adam(1e-2), order=4)
        for net, problem in ((network, zero_input), (cut, small))
    )
    np.testing.assert_allclose(with_zero_input.train, without.train, atol=1e-13)
    assert np.max(np.abs(without.train[-1] - without.train[0])) > 1e-3


# ---------------------------------------------------------------- power series

PROGRAMS: dict[str, Any] = {
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (2 + b),
    "sqrt": lambda a, b: jnp.sqrt(1 + a**2),
    "powers": lambda a, b: a**3 + jnp.square(b) - a**4 + b**5,
    "scalars": lambda a, b: a * jnp.sum(b) + jnp.max(jnp.abs(a)),
    "others": lambda a, b: jnp.where(a > b, jnp.exp(a), jax.lax.rsqrt(1 + b**2)),
    "calls": lambda a, b: jax.jit(jnp.tanh)(a) + jax.nn.softplus(b) @ jnp.ones((3, 3)),
    "choice": lambda a, b: jax.lax.cond(a[0] > 5, jnp.sin, jnp.cos, b),
    "rounds": lambda a, b: a * jnp.asarray(b > 0, float),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_power_series_equal_derivatives(name):
    draws = jax.random.normal(KEY, (4, 2, 3))
    base, *steps = [list(terms) for terms in draws]
    function = PROGRAMS[name]
    jaxpr = jax.make_jaxpr(function)(*base)

    @jax.jit
    def both(draws):
        series = [tuple(terms) for terms in zip(*draws, strict=True)]
        (actual,) = push(jaxpr.jaxpr, [*jaxpr.consts, *series])
        expected = by_jvp(lambda point: function(*point), base, steps)
        return jnp.stack(actual), jnp.stack(expected)

    np.testing.assert_allclose(*both(draws), rtol=1e-12)


def test_root_of_a_series_without_constant_term_is_nan():
    jaxpr = jax.make_jaxpr(jnp.sqrt)(jnp.ones(3))
    zeros = jnp.zeros(3)
    (root,) = push(jaxpr.jaxpr, [(zeros, zeros, zeros.at[1].set(1.0))])
    np.testing.assert_array_equal(root[0], zeros)
    np.testing.assert_array_equal(root[2], [0, np.nan, 0])
