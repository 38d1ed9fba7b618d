"""Messages for bad input and failed solves, and the end of a validity window."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network
from small_inputs import CROSS_ENTROPY, Call, X, Y, expect, formed, network, points

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")

KEY = jax.random.key(0)
ROWS = np.eye(3)


def refused(*cases: tuple[str, Call]) -> pytest.MarkDecorator:
    """Parametrize a test over calls and the messages of their errors."""
    named = [pytest.param(*case, id=" ".join(case[0].split()[:4])) for case in cases]
    return pytest.mark.parametrize(("message", "call"), named)


def kernels_on(y: Any = Y, outputs: int | None = None, loss: Any = None) -> Any:
    """Kernels of a network on a problem, whose targets are checked with its outputs."""
    return nth.kernels(network(outputs), points(y, loss), order=2)


def mlp(in_size: Any = 2, width: Any = 4, depth: Any = 1, **options: Any) -> Any:
    return nth.MLP(in_size, width, depth, key=KEY, **options)


def applied(apply_fn: Any, params: Any, **options: Any) -> Any:
    return formed(nth.from_apply(apply_fn, params), **options)


@refused(
    ("y_train has shape (2,) and x_train 3 points: give one", lambda: points(Y[:2])),
    ("y_train has shape () and x_train 3 points: give one", lambda: points(1.0)),
    (
        "x_test has inputs of shape (3,) float64 and x_train of shape (2,) float64",
        lambda: nth.Problem(X, np.ones(4), np.ones((1, 3))),
    ),
    (
        "x_test has dtype float32 and x_train float64: cast one of them",
        lambda: nth.Problem(X, np.ones(4), X.astype(np.float32)),
    ),
    (
        "y_train has dtype float32 and x_train float64: cast one of them",
        lambda: points(Y.astype(np.float32)),
    ),
    ("x_train has NaN or infinite", lambda: points(x=X[:3] * np.nan)),
    ("x_train has NaN or infinite", lambda: points(x=[[0, 1], [1, np.inf], [0, 0]])),
    ("y_train has NaN or infinite entries: remove", lambda: points([1, np.nan, 1])),
    ("y_train has NaN or infinite entries: remove", lambda: points([1, -np.inf, 1])),
    ("x_test has NaN", lambda: nth.Problem(X, np.ones(4), X * np.nan)),
    ("x_test has NaN", lambda: nth.Problem(X, np.ones(4), X * np.inf)),
    (
        "x_train has no point: give at least one training",
        lambda: nth.Problem(X[:0], Y[:0]),
    ),
    ("x_train must have shape (points, *in)", lambda: nth.Problem(1.0, 1.0)),
    ("x_test must have shape (points, *in)", lambda: nth.Problem(X, np.ones(4), 1.0)),
    (
        "x_train must hold real numbers; got ndarray with dtype complex128",
        lambda: points(x=X[:3] + 1j),
    ),
    (
        "y_train must hold real numbers; got ndarray with dtype complex128",
        lambda: points(Y * 1j),
    ),
    ("x_test must hold real numbers", lambda: nth.Problem(X, np.ones(4), 1j * X)),
    ("x_train must hold real numbers; got list", lambda: points(x=[["a"]])),
    ("x_train must hold real numbers; got str", lambda: points(x="abc")),
    ("x_train must hold real numbers; got NoneType", lambda: points(x=None)),
    ("x_train must be an array of numbers", lambda: points(x=[[1.0], [1.0, 2.0]])),
    ("y_train must hold real numbers; got list", lambda: points([object()] * 3)),
    ("y_train must hold real numbers; got list", lambda: points(list("abc"))),
    (
        "loss must be an nth loss, such as nth.SquaredError(); got 'mse'. Wrap",
        lambda: points(loss="mse"),
    ),
    ("in nth.CustomLoss(fn)", lambda: points(loss=lambda f, y: (f - y) ** 2)),
    ("loss must be an nth loss", lambda: points(loss=typed_nth.SquaredError)),
)
def test_problems_are_checked(message: str, call: Call) -> None:
    expect(message, call)


@refused(
    (
        "y_train has labels below 0: labels count from 0 to C - 1",
        lambda: points([-1, 0, 1], CROSS_ENTROPY),
    ),
    (
        "takes them for labels of shape (n,); got shape (3, 3). Give one-hot",
        lambda: points(ROWS.astype(int), CROSS_ENTROPY),
    ),
    (
        "y_train has rows that are not probabilities: no entry may be negative",
        lambda: points(2 * ROWS, CROSS_ENTROPY),
    ),
    (
        "y_train has rows that are not probabilities",
        lambda: points(np.tile([1.5, -0.5], (3, 1)), CROSS_ENTROPY),
    ),
    (
        "takes integer labels (n,), cast by .astype(int)",
        lambda: kernels_on(Y, 3, CROSS_ENTROPY),
    ),
    (
        "y_train has dtype float32 and x_train float64",
        lambda: points(ROWS.astype(np.float32), CROSS_ENTROPY),
    ),
    (
        "y_train has labels of 3 or more, and the network has 3 outputs",
        lambda: kernels_on([0, 1, 3], 3, CROSS_ENTROPY),
    ),
    (
        "y_train has targets of shape (3,) and the network outputs of shape (2,)",
        lambda: kernels_on(ROWS, 2, CROSS_ENTROPY),
    ),
    (
        "network has outputs of shape (): SoftmaxCrossEntropy takes one output for",
        lambda: kernels_on([0, 1, 2], None, CROSS_ENTROPY),
    ),
    ("outputs of shape (1,): Softmax", lambda: kernels_on([0, 0, 0], 1, CROSS_ENTROPY)),
    (
        "y_train must hold labels -1 and +1 for LogisticLoss (not 0 and 1)",
        lambda: points([0, 1, 1], nth.LogisticLoss()),
    ),
    (
        "targets of shape () and the network outputs of shape (3,)",
        lambda: kernels_on(Y, 3, nth.LogisticLoss()),
    ),
    (
        "targets of shape (1,) and the network outputs of shape (): they must be equal "
        '(a scalar network, out_size="scalar", takes targets of shape (n,))',
        lambda: kernels_on(Y[:, None]),
    ),
    (
        "targets of shape () and the network outputs of shape (1,)",
        lambda: kernels_on(Y, 1),
    ),
    (
        "targets of shape () and the network outputs of shape (3,)",
        lambda: kernels_on(Y, 3),
    ),
    (
        "targets of shape (3,) and the network outputs of shape ()",
        lambda: kernels_on(ROWS),
    ),
    (
        "loss: fn failed for an output of shape () and a target of shape (3,)",
        lambda: kernels_on(ROWS, None, nth.CustomLoss(lambda f, y: f @ y)),
    ),
    (
        "loss: fn must return a scalar of dtype float64 for one point; it returned "
        "shape (3,), float64",
        lambda: kernels_on(ROWS, 3, nth.CustomLoss(lambda f, y: f - y)),
    ),
    (
        "fn must return a scalar",
        lambda: kernels_on(loss=nth.CustomLoss(lambda f, y: (f, y))),
    ),
    ("fn must be a function fn(output, target); got 3", lambda: nth.CustomLoss(3)),
)
def test_targets_are_checked_against_outputs(message: str, call: Call) -> None:
    expect(message, call)


@pytest.mark.parametrize("size", ["in_size", "width", "depth", "out_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_sizes_of_an_mlp_are_checked(size: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    message = f"must be {'at' if whole else 'an integer of at'} least 1; got {value!r}."
    with pytest.raises(ValueError, match=f"^{size}.* {re.escape(message)}"):
        mlp(**{size: value})


@refused(
    ("got 'tahn'. Did you mean 'tanh'?", lambda: mlp(activation="tahn")),
    ("activation must be one of 'tanh', 'erf', 'relu'", lambda: mlp(activation="")),
    ("activation must be one of", lambda: mlp(activation=None)),
    (
        "parameterization must be one of 'nth', 'ntk', 'standard'; got 'nkt'. Did you "
        "mean 'ntk'?",
        lambda: mlp(parameterization="nkt"),
    ),
    (
        "got 'standart'. Did you mean 'standard'?",
        lambda: mlp(parameterization="standart"),
    ),
    ("sigma_w must be finite and at least 0; got -1.0", lambda: mlp(sigma_w=-1)),
    ("sigma_a must be finite and at least 0; got nan", lambda: mlp(sigma_a=np.nan)),
    ("sigma_b must be finite and at least 0; got inf", lambda: mlp(sigma_b=np.inf)),
    ("sigma_w must be a number; got 'one'", lambda: mlp(sigma_w="one")),
    ("sigma_w must be a number; got None", lambda: mlp(sigma_w=None)),
    ("a must be a finite number above 0; got 0.", lambda: nth.softplus(0)),
    ("a must be a finite number above 0; got -1", lambda: nth.softplus(-1.0)),
    ("a must be a finite number above 0; got inf", lambda: nth.softplus(np.inf)),
    ("a must be a finite number above 0; got 'a'", lambda: nth.softplus("a")),
    ("apply_fn must be callable; got 3", lambda: nth.from_apply(3, np.ones(2))),
)
def test_options_of_networks_are_checked(message: str, call: Call) -> None:
    expect(message, call)


class Layered(eqx.Module):
    """A linear network after one layer."""

    layer: Any
    last: eqx.nn.Linear

    def __init__(self, layer: Any):
        self.layer = layer
        self.last = eqx.nn.Linear(2, "scalar", key=KEY)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.layer(x))


def nothing(leaf: Any) -> bool:
    return False


@refused(
    (
        "network has parameters of dtype float32 and x_train has float64: cast one",
        lambda: formed(network(dtype=jnp.float32)),
    ),
    (
        "network has parameters of dtype float32",
        lambda: nth.GradientFlow(network(dtype=jnp.float32), points()),
    ),
    (
        "network has dropout switched on, so its outputs are random: switch it off "
        "with eqx.nn.inference_mode(network)",
        lambda: formed(Layered(eqx.nn.Dropout(0.5))),
    ),
    (
        "network has state (BatchNorm) that training would change",
        lambda: formed(Layered(eqx.nn.BatchNorm(2, "batch", mode="batch"))),
    ),
    (
        "network failed on one input of x_train, (2,) float64; it must map",
        lambda: formed(make_network(4, 1, 5)),
    ),
    (
        "network must map one input to one array; it returned PyTreeDef((*, *))",
        lambda: applied(lambda w, x: (w @ x, w @ x), jnp.ones(2)),
    ),
    (
        "network has outputs of dtype float32 and parameters of dtype float64",
        lambda: applied(lambda w, x: (w @ x).astype(jnp.float32), jnp.ones(2)),
    ),
    (
        "network has NaN",
        lambda: applied(lambda w, x: w @ x, jnp.array([1.0, jnp.nan])),
    ),
    (
        "network has no trainable array under filter_spec: choose at least one",
        lambda: formed(network(), filter_spec=nothing),
    ),
    (
        "filter_spec must be a function of a leaf, or a pytree prefix of booleans",
        lambda: formed(network(), filter_spec="weights"),
    ),
    ("filter_spec must be", lambda: formed(network(), filter_spec=(True, False))),
    (
        "filter_spec selects a leaf of type int64 for training, but only real floating",
        lambda: applied(
            lambda p, x: p[0] @ x,
            (jnp.ones(2), jnp.array(3)),
            filter_spec=eqx.is_array,
        ),
    ),
    (
        "network must be an eqx.Module of one input, a flax.nnx.Module, or nth.from",
        lambda: formed({"w": jnp.ones(2)}),
    ),
)
def test_networks_are_checked(message: str, call: Call) -> None:
    expect(message, call)


def test_dropout_in_inference_mode_is_accepted() -> None:
    """Dropout in inference mode is the identity."""
    dropout = eqx.nn.inference_mode(Layered(eqx.nn.Dropout(0.5)))
    plain = Layered(eqx.nn.Identity())
    np.testing.assert_allclose(formed(dropout)[2], formed(plain)[2], rtol=1e-14)


@pytest.mark.parametrize("order", [1, 0, -2, 2.0, True, "3", None])
def test_order_is_checked(order: Any) -> None:
    whole = isinstance(order, int) and not isinstance(order, bool)
    message = f"must be {'at' if whole else 'an integer of at'} least 2; got {order!r}."
    expect(f"order {message}", lambda: formed(network(), order))
    ts = jnp.ones(1)
    expect(f"order {message}", lambda: nth.solve(network(), points(), ts, order=order))


@refused(
    ("block_size must be at least 1; got 0", lambda: formed(network(), block_size=0)),
    (
        "block_size must be an integer of at least 1; got 1.5",
        lambda: formed(network(), block_size=1.5),
    ),
)
def test_block_size_is_checked(message: str, call: Call) -> None:
    expect(message, call)


@pytest.mark.parametrize("outputs", [None, 3])
def test_kernels_that_do_not_fit_in_memory_are_refused(outputs: int | None) -> None:
    """The message has the size of the kernels, and a cure."""
    n, order, c = 3000, 4, outputs or 1
    x = np.random.default_rng(0).normal(size=(n, 2))
    y = np.ones(n) if outputs is None else np.ones((n, c))
    large = nth.Problem(x, y)
    slots = f"{n * c} x {n * c} slots"
    message = f"order: forming kernels up to r = {order} on {slots} takes "
    ts = jnp.ones(1)
    expect(message, lambda: nth.kernels(network(outputs), large, order=order))
    net, dense = network(outputs), "dense"
    expect(message, lambda: nth.solve(net, large, ts, order=order, method=dense))
    cure = "Use fewer training points, a lower order or float32"
    expect(cure, lambda: nth.compare(net, large, ts, (2, order), method=dense))


@pytest.mark.parametrize("jit", [jax.jit, eqx.filter_jit])
@pytest.mark.parametrize("argument", ["x_train", "y_train", "x_test"])
def test_traced_nan_is_an_error_at_run_time(jit: Any, argument: str) -> None:
    """Traced values are checked at run time."""
    arrays = {"x_train": X[:3], "y_train": Y, "x_test": X[3:]}

    @jit
    def checked(array: Any) -> Any:
        return getattr(nth.Problem(**{**arrays, argument: array}), argument)

    good = jnp.asarray(arrays[argument])
    np.testing.assert_array_equal(checked(good), good)
    with pytest.raises(Exception, match=f"{argument} has NaN"):
        jax.block_until_ready(checked(good.at[0].set(jnp.nan)))
