"""What wrong input is told, what a failed solve says, and where a window ends."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # wrong types are the point here
Call = Callable[[], Any]

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 2))
Y = np.array([1.0, -1.0, 1.0])
ROWS = np.eye(3)
CROSS_ENTROPY = typed_nth.SoftmaxCrossEntropy()
SUCCESSFUL = nth.RESULTS.successful


@pytest.fixture(autouse=True)
def users_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user has no type checker between them and our messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(*cases: tuple[str, Call]) -> pytest.MarkDecorator:
    """Parametrize a test over calls and the messages of their errors."""
    named = [pytest.param(*case, id=" ".join(case[0].split()[:4])) for case in cases]
    return pytest.mark.parametrize(("words", "call"), named)


def expect(words: str, call: Call) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def points(y: Any = Y, loss: Any = None, x: Any = X[:3]) -> Any:
    return nth.Problem(x, y, X[3:], loss=nth.SquaredError() if loss is None else loss)


def network(outputs: int | None = None, **options: Any) -> Any:
    return make_network(4, 1, 2, outputs=outputs, **options)


def meet(y: Any = Y, outputs: int | None = None, loss: Any = None) -> Any:
    """A network meets a problem: targets are checked against its outputs."""
    return nth.kernels(network(outputs), points(y, loss), order=2)


def mlp(in_size: Any = 2, width: Any = 4, depth: Any = 1, **options: Any) -> Any:
    return nth.MLP(in_size, width, depth, key=KEY, **options)


def formed(net: Any, order: Any = 2, **options: Any) -> Any:
    return nth.kernels(net, points(), order=order, **options)


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
def test_problem(words: str, call: Call) -> None:
    expect(words, call)


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
        lambda: meet(Y, 3, CROSS_ENTROPY),
    ),
    (
        "y_train has dtype float32 and x_train float64",
        lambda: points(ROWS.astype(np.float32), CROSS_ENTROPY),
    ),
    (
        "y_train has labels of 3 or more, and the network has 3 outputs",
        lambda: meet([0, 1, 3], 3, CROSS_ENTROPY),
    ),
    (
        "y_train has targets of shape (3,) and the network outputs of shape (2,)",
        lambda: meet(ROWS, 2, CROSS_ENTROPY),
    ),
    (
        "network has outputs of shape (): SoftmaxCrossEntropy takes one output for",
        lambda: meet([0, 1, 2], None, CROSS_ENTROPY),
    ),
    ("outputs of shape (1,): Softmax", lambda: meet([0, 0, 0], 1, CROSS_ENTROPY)),
    (
        "y_train must hold labels -1 and +1 for LogisticLoss (not 0 and 1)",
        lambda: points([0, 1, 1], nth.LogisticLoss()),
    ),
    (
        "targets of shape () and the network outputs of shape (3,)",
        lambda: meet(Y, 3, nth.LogisticLoss()),
    ),
    (
        "targets of shape (1,) and the network outputs of shape (): they must be equal "
        '(a scalar network, out_size="scalar", takes targets of shape (n,))',
        lambda: meet(Y[:, None]),
    ),
    ("targets of shape () and the network outputs of shape (1,)", lambda: meet(Y, 1)),
    ("targets of shape () and the network outputs of shape (3,)", lambda: meet(Y, 3)),
    ("targets of shape (3,) and the network outputs of shape ()", lambda: meet(ROWS)),
    (
        "loss: fn failed for an output of shape () and a target of shape (3,)",
        lambda: meet(ROWS, None, nth.CustomLoss(lambda f, y: f @ y)),
    ),
    (
        "loss: fn must return a scalar of dtype float64 for one point; it returned "
        "shape (3,), float64",
        lambda: meet(ROWS, 3, nth.CustomLoss(lambda f, y: f - y)),
    ),
    ("fn must return a scalar", lambda: meet(loss=nth.CustomLoss(lambda f, y: (f, y)))),
    ("fn must be a function fn(output, target); got 3", lambda: nth.CustomLoss(3)),
)
def test_targets(words: str, call: Call) -> None:
    expect(words, call)


@pytest.mark.parametrize("size", ["in_size", "width", "depth", "out_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_size(size: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    words = f"must be {'at' if whole else 'an integer of at'} least 1; got {value!r}."
    with pytest.raises(ValueError, match=f"^{size}.* {re.escape(words)}"):
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
def test_choice(words: str, call: Call) -> None:
    expect(words, call)


class Layered(eqx.Module):
    """A linear network behind one layer."""

    layer: Any
    last: eqx.nn.Linear

    def __init__(self, layer: Any):
        self.layer = layer
        self.last = eqx.nn.Linear(2, "scalar", key=KEY)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.layer(x))


def never(leaf: Any) -> bool:
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
        lambda: formed(network(), filter_spec=never),
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
def test_network(words: str, call: Call) -> None:
    expect(words, call)


def test_dropout_off() -> None:
    """Out of training, dropout is the identity."""
    dropout = eqx.nn.inference_mode(Layered(eqx.nn.Dropout(0.5)))
    plain = Layered(eqx.nn.Identity())
    np.testing.assert_allclose(formed(dropout)[2], formed(plain)[2], rtol=1e-14)


@pytest.mark.parametrize("order", [1, 0, -2, 2.0, True, "3", None])
def test_order(order: Any) -> None:
    whole = isinstance(order, int) and not isinstance(order, bool)
    words = f"must be {'at' if whole else 'an integer of at'} least 2; got {order!r}."
    expect(f"order {words}", lambda: formed(network(), order))
    ts = jnp.ones(1)
    expect(f"order {words}", lambda: nth.solve(network(), points(), ts, order=order))


@refused(
    ("block_size must be at least 1; got 0", lambda: formed(network(), block_size=0)),
    (
        "block_size must be an integer of at least 1; got 1.5",
        lambda: formed(network(), block_size=1.5),
    ),
)
def test_block_size(words: str, call: Call) -> None:
    expect(words, call)


@pytest.mark.parametrize("outputs", [None, 3])
def test_too_large(outputs: int | None) -> None:
    """The size in the message is that of the kernels, and there is a way out."""
    n, order, c = 3000, 4, outputs or 1
    x = np.random.default_rng(0).normal(size=(n, 2))
    y = np.ones(n) if outputs is None else np.ones((n, c))
    large = nth.Problem(x, y)
    slots = f"{n * c} x {n * c} slots"
    words = f"order: forming kernels up to r = {order} on {slots} takes "
    ts = jnp.ones(1)
    expect(words, lambda: nth.kernels(network(outputs), large, order=order))
    net, dense = network(outputs), "dense"
    expect(words, lambda: nth.solve(net, large, ts, order=order, method=dense))
    cure = "Use fewer training points, a lower order or float32"
    expect(cure, lambda: nth.compare(net, large, ts, (2, order), method=dense))


@pytest.fixture(scope="module")
def kernels() -> Any:
    """K(1), K(2), K(3) of a scalar network on three training and one test point."""
    return formed(network(), 3)


@pytest.mark.parametrize("r", [0, -1])
def test_kernels_from_one(kernels: Any, r: int) -> None:
    expect(f"r must be at least 1; got {r}.", lambda: kernels[r])


def test_kernels_up_to_order(kernels: Any) -> None:
    with pytest.raises(IndexError, match=r"go up to r = 3; got r = 4\."):
        kernels[4]


def test_hierarchy(kernels: Any) -> None:
    def dense(problem: Any, order: Any = None) -> Call:
        return lambda: nth.DenseHierarchy(kernels, problem, order=order)

    fewer = nth.Problem(X[:2], Y[:2], X[3:])
    expect("(4, 3) for K(2), and problem has m = 3 points, n = 2", dense(fewer))
    none = nth.Problem(X[:3], Y)
    expect("m = 3 points, n = 3 for training: form them on its points", dense(none))
    expect("order must be at most 3, the order of kernels; got 4", dense(points(), 4))
    expect("order must be at least 2; got 1", dense(points(), 1))
    expect("order must be an integer of at least 2; got 2.0", dense(points(), 2.0))
    expect("targets of shape (1,) and the network outputs", dense(points(Y[:, None])))
    labels = points([0, 1, 2], CROSS_ENTROPY)
    expect("SoftmaxCrossEntropy takes one output for each of C", dense(labels))


@pytest.mark.parametrize(
    ("ts", "words"),
    [
        ([], "ts must be a sequence of at least one time; got shape (0,)."),
        ([[0.0, 1.0]], "ts must be a sequence of at least one time; got shape (1, 2)."),
        (1.0, "ts must be a sequence of at least one time; got shape ()."),
        ([1.0, 0.5], "ts must be increasing"),
        ([0.0, 1.0, 1.0], "ts must be increasing"),
        ([1.0, 1.0 + 1e-17], "ts must be increasing, in float64, the dtype"),
        ([0.0, np.nan], "ts must be finite: it has NaN or inf."),
        ([0.0, np.inf], "ts must be finite"),
        ([-1.0, 1.0], "ts must be at least 0, where training begins."),
        ([False, True], "ts must hold numbers; got dtype bool."),
    ],
)
def test_times(kernels: Any, ts: Any, words: str) -> None:
    flow = nth.GradientFlow(network(), points())
    expect(words, lambda: nth.integrate(flow, ts))
    hierarchy = nth.DenseHierarchy(kernels, points())
    expect(words, lambda: nth.integrate(hierarchy, ts))
    expect(words, lambda: nth.gradient_flow(network(), points(), ts))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1; got 0."),
        ({"max_steps": 1.5}, "max_steps must be an integer of at least 1; got 1.5."),
        ({"max_steps": None}, "max_steps must be an integer of at least 1; got None."),
    ],
)
def test_max_steps(options: Any, words: str) -> None:
    expect(words, lambda: nth.gradient_flow(network(), points(), [1.0], **options))


def test_method() -> None:
    words = "got 'densee'. Did you mean 'dense'?"
    front = (network(), points(), [1.0])
    expect(words, lambda: nth.solve(*front, order=2, method="densee"))
    expect(words, lambda: nth.compare(*front, method="densee"))


@pytest.mark.parametrize("front", ["solve", "gradient_flow", "compare"])
def test_unknown_option(front: str) -> None:
    order = {"order": 2} if front == "solve" else {}
    with pytest.raises(
        TypeError, match=r"(unexpected keyword argument|unknown option) 'max_step'"
    ):
        getattr(nth, front)(network(), points(), [1.0], max_step=3, **order)


@pytest.mark.parametrize("front", ["solve", "gradient_flow"])
def test_failed_solve(front: str) -> None:
    """Too few steps: the error says why and where, and throw=False keeps the rest."""
    order = {"order": 2, "method": "dense"} if front == "solve" else {}
    call = (network(), points(), [0.0, 0.001, 10.0])
    solution = getattr(nth, front)(*call, max_steps=1, throw=False, **order)
    last = float(solution.stats["last_time"])
    assert 0 < last < 10
    assert solution.result != SUCCESSFUL
    assert solution.valid_until == np.inf
    reached = np.asarray(solution.ts) <= last
    assert reached.any()
    assert not reached.all()
    for values in (solution.train, solution.test, solution.loss):
        assert np.isfinite(values[reached]).all()
        assert np.isnan(values[~reached]).all()
    words = f"{solution.label} failed at t = {last:.6g}, before the last time 10: "
    with pytest.raises(RuntimeError, match=re.escape(words)) as raised:
        getattr(nth, front)(*call, max_steps=1, **order)
    assert "it took max_steps=1 steps. Give a larger max_steps" in str(raised.value)
    assert "throw=False" in str(raised.value)


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ((), "orders must be a sequence of at least one level; got ()."),
        (3, "orders must be a sequence of at least one level; got 3."),
        ((2, 3, 2), "orders must be distinct; got (2, 3, 2)."),
        ((1, 2), "orders must be at least 2; got 1."),
        ((2.0,), "orders must be an integer of at least 2; got 2.0."),
        ((True, 2), "orders must be an integer of at least 2; got True."),
        ("23", "orders must be an integer of at least 2; got '2'."),
    ],
)
def test_orders(orders: Any, words: str) -> None:
    expect(words, lambda: nth.compare(network(), points(), [1.0], orders))


@pytest.mark.parametrize("shape", [(), (2,), (1, 1)])
def test_y_test(shape: tuple[int, ...]) -> None:
    words = f"y_test must have shape (1,), as x_test and y_train require; got {shape}."
    y_test = np.ones(shape)
    expect(words, lambda: nth.compare(network(), points(), [1.0], y_test=y_test))


@pytest.mark.parametrize("jit", [jax.jit, eqx.filter_jit])
@pytest.mark.parametrize("argument", ["x_train", "y_train", "x_test"])
def test_traced_nan(jit: Any, argument: str) -> None:
    """What cannot be checked when traced is checked at run time."""
    arrays = {"x_train": X[:3], "y_train": Y, "x_test": X[3:]}

    @jit
    def of(array: Any) -> Any:
        return getattr(nth.Problem(**{**arrays, argument: array}), argument)

    good = jnp.asarray(arrays[argument])
    np.testing.assert_array_equal(of(good), good)
    with pytest.raises(Exception, match=f"{argument} has NaN"):
        jax.block_until_ready(of(good.at[0].set(jnp.nan)))


SCALE, SPACING = 5.0, 0.125
TIMES = jnp.arange(0.0, 16.0, SPACING)


def far(seed: int) -> tuple[Any, Any]:
    """A narrow network and targets so large that level 3 soon leaves its window."""
    problem = make_problem(n=3, q=1, seed=seed)
    targets = SCALE * problem.y_train
    return (
        make_network(4, 1, seed=seed),
        nth.Problem(problem.x_train, targets, problem.x_test),
    )


@pytest.fixture(scope="module")
def comparison() -> Any:
    """The trained network and level 2 of the first problem of `far`."""
    return nth.compare(*far(0), TIMES, (2,), method="dense")


def test_comparison(comparison: Any) -> None:
    expect(
        "order must be one of the compared levels, [2]; got 7.",
        lambda: comparison.error(7),
    )
    words = "points must be one of 'train', 'test'; got 'tets'. Did you mean 'test'?"
    expect(words, lambda: comparison.error(2, "tets"))
    expect(words, lambda: comparison.accuracy(2, "tets"))


def test_no_test_point(comparison: Any) -> None:
    def tests(c: Any) -> tuple[Any, ...]:
        return (c.problem.x_test, c.truth.test, c.solutions[2].test)

    problem, truth, solution = tests(comparison)
    less = eqx.tree_at(tests, comparison, (problem[:0], truth[:, :0], solution[:, :0]))
    words = "points: problem has no test points; give it an x_test."
    expect(words, lambda: less.error(2))
    assert np.isfinite(less.error(2, "train")).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_window(seed: int) -> None:
    """It ends where the predicted loss first rises, and a blow-up leaves NaN."""
    with pytest.warns(typed_nth.WindowWarning, match="level-3 .* left its window") as w:
        solution = nth.solve(*far(seed), TIMES, order=3)
    assert len(w) == 1
    assert w[0].filename == __file__  # the user's line, not the library's
    assert f"t = {float(solution.valid_until):.4g}:" in str(w[0].message)
    loss = np.asarray(solution.loss)
    lowest = np.argmax(np.diff(loss) > 0)
    assert lowest > 0
    assert abs(solution.valid_until - TIMES[lowest]) < 2 * SPACING
    assert solution.result == nth.RESULTS.diverged
    reached = np.asarray(solution.ts <= solution.stats["last_time"])
    assert not reached.all()
    for values in (solution.train, solution.test, solution.loss):
        assert np.isfinite(values[reached]).all()
        assert np.isnan(values[~reached]).all()


@pytest.mark.filterwarnings("ignore::nth.AccuracyWarning")  # close to the window's end
def test_window_of_other_times() -> None:
    """The window belongs to the dynamics, whatever times are requested."""
    with pytest.warns(typed_nth.WindowWarning):
        many = nth.solve(*far(0), TIMES, order=3)
    with pytest.warns(typed_nth.WindowWarning):
        one = nth.solve(*far(0), TIMES[-1:], order=3)
    np.testing.assert_allclose(one.valid_until, many.valid_until, rtol=1e-6)
    assert np.isnan(one.loss).all()
    before = many.valid_until / 2
    inside = nth.solve(*far(0), before[None], order=3)
    assert inside.valid_until == np.inf
    assert np.isfinite(inside.loss).all()


def test_window_under_jit() -> None:
    net, problem = far(0)

    @eqx.filter_jit
    def traced(targets: Any) -> Any:
        with_test = nth.Problem(problem.x_train, targets, problem.x_test)
        return nth.solve(net, with_test, TIMES, order=3)

    def run() -> Any:
        solution = jax.block_until_ready(traced(problem.y_train))
        jax.effects_barrier()
        return solution

    with pytest.warns(typed_nth.WindowWarning, match="left its window") as w:
        jitted = run()
    assert len(w) == 1
    with pytest.warns(typed_nth.WindowWarning):
        eager = nth.solve(*far(0), TIMES, order=3)
    np.testing.assert_allclose(jitted.valid_until, eager.valid_until, rtol=1e-6)


def test_truth_has_no_window(comparison: Any) -> None:
    """Gradient flow's loss never rises; nor does that of the constant kernel."""
    for solution in (comparison.truth, comparison.solutions[2]):
        assert solution.valid_until == np.inf
        assert solution.result == SUCCESSFUL
        assert np.all(np.diff(solution.loss) <= 1e-9)
        assert solution.loss[-1] < solution.loss[0]
