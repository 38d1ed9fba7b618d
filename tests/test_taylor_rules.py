"""Every primitive for which Taylor arithmetic is used, against nested `jvp`.

`jax.experimental.jet` has wrong rules. It is used for a function only if derivatives
pass only through the primitives in `nth._dynamics.taylor_coefficients.PROVED`; these
tests verify each of them, at points that include zero, negative and large numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from network_kinds import X, draw

import nth
from nth._dynamics.taylor_coefficients import PROVED, best_coefficients, by_jet, by_jvp
from nth._internal.jaxpr import differentiated

ANY = jnp.asarray([-30.0, -2.3, -1.0, -0.4, 0.0, 0.3, 1.0, 1.7, 30.0])
SMOOTH = jnp.asarray([-2.3, -1.1, -0.4, 0.3, 0.9, 1.7])  # away from the kinks at 0, ±1
POSITIVE = jnp.asarray([1e-3, 0.3, 1.0, 2.4, 30.0])
SOME = jnp.asarray([0, 2, 2, 5])


def power(exponent):
    return lambda x: lax.integer_pow(x, exponent)


def convolution(x):
    kernel = (x[:4] ** 3).reshape(2, 1, 2)
    image = (x * x).reshape(1, 2, 3)
    return lax.conv_general_dilated(image, kernel, (1,), "SAME", feature_group_count=2)


RULES = {
    "abs": (jnp.abs, SMOOTH),
    "add": (lambda x: x + x * x, ANY),
    "add_any": (jax.grad(lambda x: jnp.sum(x * x * jnp.sin(x))), ANY),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x * x, (2, x.size)), ANY),
    "concatenate": (lambda x: jnp.concatenate([x * x, x]), ANY),
    "conv_general_dilated": (convolution, SMOOTH),
    "convert_element_type": (lambda x: (x * x).astype(jnp.float32), SMOOTH),
    "copy": (lambda x: jnp.copy(x * x), ANY),
    "cos": (jnp.cos, ANY),
    "cosh": (jnp.cosh, SMOOTH),
    "cumsum": (lambda x: jnp.cumsum(x * x), ANY),
    "div": (lambda x: (x + 1) / (2 + x * x), ANY),
    "dot_general": (lambda x: x.reshape(2, 3) @ (x * x).reshape(3, 2), SMOOTH),
    "dynamic_slice": (lambda x: lax.dynamic_slice(x * x, (2,), (3,)), ANY),
    "dynamic_update_slice": (
        lambda x: lax.dynamic_update_slice(x * x, 3 * x[:2], (2,)),
        ANY,
    ),
    "eq": (lambda x: jnp.where(x == 1, x, x * x), SMOOTH),
    "erf": (lax.erf, ANY),
    "erfc": (lax.erfc, ANY),
    "exp": (jnp.exp, ANY),
    "floor": (lambda x: jnp.floor(x) * x, SMOOTH),
    "gather": (lambda x: (x * x)[SOME], ANY),
    "ge": (lambda x: jnp.where(x >= 0, x, x * x), SMOOTH),
    "gt": (lambda x: jnp.where(x > 0, x, x * x), SMOOTH),
    "integer_pow": (power(3), ANY),
    "integer_pow, even": (power(2), ANY),
    "integer_pow, negative": (power(-2), SMOOTH),
    "integer_pow, of 0": (power(0), ANY),
    "integer_pow, of 1": (power(1), ANY),
    "integer_pow, of 5": (power(5), ANY),
    "is_finite": (lambda x: jnp.where(jnp.isfinite(x), x * x, 0.0), ANY),
    "le": (lambda x: jnp.where(x <= 0, x, x * x), SMOOTH),
    "log": (jnp.log, POSITIVE),
    "logistic": (lax.logistic, ANY),
    "lt": (lambda x: jnp.where(x < 0, x, x * x), SMOOTH),
    "max": (lambda x: lax.max(x, x * x), SMOOTH),
    "min": (lambda x: lax.min(x, x * x), SMOOTH),
    "mul": (lambda x: x * x * x, ANY),
    "ne": (lambda x: jnp.where(x != 1, x, x * x), SMOOTH),
    "neg": (lambda x: -(x * x), ANY),
    "pad": (lambda x: lax.pad(x * x, x[0] ** 2, ((1, 2, 1),)), ANY),
    "reduce_max": (lambda x: jnp.max(x[None] * draw(3, 6), axis=1), SMOOTH),
    "reduce_min": (lambda x: jnp.min(x[None] * draw(3, 6), axis=1), SMOOTH),
    "reduce_sum": (lambda x: jnp.sum(x * x), ANY),
    "reshape": (lambda x: (x * x).reshape(2, 3), SMOOTH),
    "rev": (lambda x: lax.rev(x * x, (0,)), ANY),
    "round": (lambda x: lax.round(x) * x, SMOOTH),
    "rsqrt": (lax.rsqrt, POSITIVE),
    "scatter-add": (lambda x: jnp.zeros(6).at[SOME].add(x[:4] * x[:4]), ANY),
    "select_n": (lambda x: jnp.where(jnp.arange(9) > 4, x, x * x), ANY),
    "sign": (lambda x: jnp.sign(x) * x, SMOOTH),
    "sin": (jnp.sin, ANY),
    "sinh": (jnp.sinh, SMOOTH),
    "slice": (lambda x: (x * x)[1:4], ANY),
    "split": (lambda x: jnp.split(x * x, 3)[1], ANY),
    "sqrt": (lax.sqrt, POSITIVE),
    "square": (lax.square, ANY),
    "squeeze": (lambda x: jnp.squeeze((x * x).reshape(1, 9)), ANY),
    "stop_gradient": (lambda x: lax.stop_gradient(x * x) * x, ANY),
    "sub": (lambda x: x - x * x, ANY),
    "tanh": (jnp.tanh, ANY),
    "transpose": (lambda x: (x * x).reshape(2, 3).T, SMOOTH),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_equals_nested_jvp(rule):
    function, x = RULES[rule]
    names, _ = differentiated(jax.make_jaxpr(function)(x).jaxpr)
    assert rule.partition(",")[0] in names
    rng = np.random.default_rng(0)
    steps = [jnp.asarray(0.3 * rng.normal(size=x.shape)) for _ in range(4)]

    @jax.jit
    def both(x, steps):
        return by_jet(function, x, steps), by_jvp(function, x, steps)

    actual, expected = both(x, steps)
    eps = float(jnp.finfo(expected[0].dtype).eps)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=50 * eps, atol=50 * eps)


def test_each_proved_primitive_has_a_test():
    assert {rule.partition(",")[0] for rule in RULES} == PROVED


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (lambda z: jnp.fmod(z, 1.0), "rem"),
        (lambda z: jnp.arcsinh(1e8 * z), "asinh"),
        (lambda z: (z * z) ** 1.5, "pow"),
        (jnp.arctan, "atan"),
        (lambda z: lax.reduce_precision(z, 11, 52), "reduce_precision"),
    ],
)
def test_other_primitives_are_left_to_nested_jvp(activation, name):
    """Whether or not jet has a rule for them."""

    def apply(w, x):
        return jnp.sum(jnp.tanh(activation(w @ x)))

    w = draw(4, 3)
    names, _ = differentiated(jax.make_jaxpr(apply)(w, X[0]).jaxpr)
    assert name in names
    assert best_coefficients(lambda w: apply(w, X[0]), w) is by_jvp
    problem = nth.Problem(X[:3], jnp.ones(3))
    network = nth.from_apply(apply, w)
    solution = nth.solve(network, problem, [0.0], order=2, method="matrix-free")
    expected = jax.vmap(lambda x: apply(w, x))(X[:3])
    np.testing.assert_allclose(solution.train[0], expected, rtol=1e-12, atol=1e-14)


def test_only_differentiated_primitives_count():
    """Integer arithmetic on indices and constants need no rule."""

    def function(w):
        table = jnp.fmod(jnp.arange(6.0), 4.0)
        index = jnp.argsort(table).astype(jnp.int32) % 3
        return jnp.sum(w[index] * jnp.arctan(table))

    names, outputs = differentiated(jax.make_jaxpr(function)(draw(6)).jaxpr)
    assert names <= {"gather", "mul", "reduce_sum"}
    assert outputs == [True]
    assert best_coefficients(function, draw(6)) is by_jet
