"""Bad values of every argument of every public function: each error names it.

Nothing here compiles: every value is rejected before work begins.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_arguments import (
    HUGE,
    KEY,
    LOW,
    NETWORK,
    PROBLEM,
    Call,
    X,
    Y,
    expect,
    formed,
    refused,
)
from conftest import make_problem

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")

OPTIMIZER = optax.sgd(0.1)


def problem(**options: Any) -> Any:
    return nth.Problem(**{"x_train": X, "y_train": Y, **options})


@refused(
    ("x_train", lambda: problem(x_train=None)),
    ("x_train", lambda: problem(x_train="inputs")),
    ("x_train", lambda: problem(x_train=1.0)),
    ("x_train", lambda: problem(x_train=X * np.nan)),
    ("x_train", lambda: problem(x_train=X * 1j)),
    ("x_train", lambda: problem(x_train=X.astype(np.longdouble))),
    ("x_train", lambda: problem(x_train=[[1], [1, 2]])),
    ("y_train", lambda: problem(y_train=None)),
    ("y_train", lambda: problem(y_train=Y[:2])),
    ("y_train", lambda: problem(y_train=Y * np.inf)),
    ("y_train", lambda: problem(y_train=[2**70] * 4)),
    ("x_test", lambda: problem(x_test=X[:, :2])),
    ("x_test", lambda: problem(x_test=object())),
    *[("x_train", lambda low=low: problem(x_train=jnp.asarray(X, low))) for low in LOW],
    *[("y_train", lambda low=low: problem(y_train=jnp.asarray(Y, low))) for low in LOW],
    ("loss", lambda: problem(loss=None)),
    ("loss", lambda: problem(loss=nth.SquaredError)),
    ("fn", lambda: nth.CustomLoss(None)),
    ("y_train", lambda: problem(loss=nth.LogisticLoss(), y_train=Y * 0)),
    ("y_train", lambda: problem(loss=nth.SoftmaxCrossEntropy(), y_train=[-1] * 4)),
)
def test_problem_names_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


def mlp(**options: Any) -> Any:
    given = {"in_size": 3, "width": 4, "depth": 1, "key": KEY, **options}
    return nth.MLP(**given)


def low_parameters(dtype: Any) -> Any:
    """A flow with parameters of 16 bits, and inputs that do not set a dtype."""
    network = nth.from_apply(lambda w, x: w * x.astype(w.dtype), jnp.ones((), dtype))
    return nth.GradientFlow(network, nth.Problem([1, 2], [1.0, 2.0]))


@refused(
    ("in_size", lambda: mlp(in_size=0)),
    ("width", lambda: mlp(width=2.0)),
    ("width", lambda: mlp(width=HUGE)),
    ("depth", lambda: mlp(depth=10**6)),
    ("depth", lambda: mlp(depth=True)),
    ("out_size", lambda: mlp(out_size="vector")),
    ("activation", lambda: mlp(activation=3)),
    ("parameterization", lambda: mlp(parameterization=["nth"])),
    ("use_bias", lambda: mlp(use_bias="no")),
    ("use_bias", lambda: mlp(use_bias=1)),
    ("sigma_w", lambda: mlp(sigma_w=np.ones(1))),
    ("sigma_a", lambda: mlp(sigma_a=1j)),
    ("sigma_b", lambda: mlp(sigma_b=True)),
    ("dtype", lambda: mlp(dtype=complex)),
    ("dtype", lambda: mlp(dtype=int)),
    ("dtype", lambda: mlp(dtype="single-ish")),
    ("dtype", lambda: mlp(dtype=LOW[0])),
    ("dtype", lambda: mlp(dtype=LOW[1])),
    ("key", lambda: mlp(key=0)),
    ("key", lambda: mlp(key=None)),
    ("key", lambda: mlp(key=jax.random.split(KEY))),
    ("key", lambda: mlp(key=np.ones(2))),
    ("apply_fn", lambda: nth.from_apply(None, {})),
    *[("network", lambda low=low: low_parameters(low)) for low in LOW],
)
def test_networks_name_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


def solve(**options: Any) -> Any:
    network, data = options.pop("network", NETWORK), options.pop("problem", PROBLEM)
    return nth.solve(network, data, options.pop("ts", [1.0]), **{"order": 2, **options})


def wrong(name: str, *values: Any, **others: Any) -> list[tuple[str, Call]]:
    """One row for each bad value of one option of the solve."""
    return [(name, lambda v=v: solve(**{name: v}, **others)) for v in values]


CONSTANT = diffrax.ConstantStepSize()

STEP_TO = diffrax.StepTo(jnp.array([0.0, 1.0]))


@refused(
    *wrong("network", None, 3, "mlp", {"w": X}),
    *wrong("problem", None, 3, (X, Y)),
    *wrong("ts", None, "now", [], [[1.0]], 1.0, [np.nan], [np.inf], [-1.0], [2, 1]),
    *wrong("ts", [True], [0.0, 0.0], [1j], [object()], [[1.0], [1.0, 2.0]]),
    *wrong("order", 1, 0, 2.0, True, None, "2", 13, 10**9),
    *wrong("method", "denser", None, 3, ["dense"]),
    *wrong("filter_spec", 3, "weights", [True]),
    *wrong("learning_rates", True, "fast", -1.0, np.nan, {"a": 1.0}, 1j),
    *wrong("learning_rates", jnp.array(True), np.ones((7, 7))),
    *wrong("weight_decay", True, "much", -1.0, np.inf, [0.1], 1j, None),
    *wrong("solver", 3, None, diffrax.Tsit5, "Tsit5"),
    *wrong("solver", diffrax.SemiImplicitEuler(), diffrax.KenCarp4(), diffrax.ShARK()),
    *wrong("solver", diffrax.EulerHeun(), diffrax.ItoMilstein(), diffrax.ALIGN(0.1)),
    *wrong("solver", diffrax.Euler(), diffrax.LeapfrogMidpoint()),  # no error estimate
    *wrong("solver", diffrax.Kvaerno5(), stepsize_controller=CONSTANT, dt0=0.1),
    *wrong("stepsize_controller", 3, "pid", diffrax.PIDController),
    *wrong("stepsize_controller", diffrax.StepTo(jnp.array([0.0, 0.5]))),
    *wrong("dt0", 0, -0.1, np.nan, "small", True, [0.1]),
    *wrong("dt0", None, stepsize_controller=CONSTANT),
    *wrong("dt0", 0.1, stepsize_controller=STEP_TO),
    *wrong("adjoint", 3, None, diffrax.BacksolveAdjoint(), diffrax.ImplicitAdjoint()),
    *wrong("max_steps", 0, 1.5, None, HUGE),
    *wrong("progress", diffrax.TqdmProgressMeter),
    *wrong("progress", "yes", 1, None),
    *wrong("checkpoint", 3, "", True, b"run.npz"),
    *wrong("save_fn", 3, "t", lambda: 1, lambda t, state, args: 1, method="dense"),
    *wrong("throw", 1, "no", None),
)
def test_solve_names_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


@pytest.mark.parametrize("option", ["max_step", "tolerance"])
def test_unknown_options_are_refused(option: str) -> None:
    near = r".* Did you mean 'max_steps'\?" if option == "max_step" else ""
    with pytest.raises(TypeError, match=f"unknown option '{option}'{near}"):
        solve(**{option: 1})


FLOW = typed_nth.GradientFlow(NETWORK, PROBLEM)


@refused(
    ("dynamics", lambda: nth.integrate(None, [1.0])),
    ("dynamics", lambda: nth.integrate(NETWORK, [1.0])),
    ("save_fn", lambda: nth.integrate(FLOW, [1.0], save_fn=lambda t, y, a: y.nothing)),
    ("dynamics", lambda: nth.kernel_along(NETWORK, [1.0])),
    ("save_fn", lambda: nth.kernel_along(FLOW, [1.0], save_fn=len)),
    ("solver", lambda: nth.kernel_along(FLOW, [1.0], solver=3)),
    ("count", lambda: nth.spectrum_along(FLOW, [1.0], 0)),
    ("count", lambda: nth.spectrum_along(FLOW, [1.0], 4)),
    ("problem", lambda: nth.gradient_flow(NETWORK, None, [1.0])),
    ("ts", lambda: nth.gradient_flow(NETWORK, PROBLEM, None)),
    ("weight_decay", lambda: nth.GradientFlow(NETWORK, PROBLEM, weight_decay="a")),
    ("degree", lambda: nth.TaylorizedFlow(NETWORK, PROBLEM, degree=0)),
    ("degree", lambda: nth.TaylorizedFlow(NETWORK, PROBLEM, degree=10**9)),
    ("problem", lambda: nth.TaylorizedFlow(NETWORK, None, degree=1)),
    ("kernels", lambda: nth.DenseHierarchy(None, PROBLEM)),
    ("problem", lambda: nth.DenseHierarchy(formed(), None)),
    ("order", lambda: nth.DenseHierarchy(formed(), PROBLEM, order=10**9)),
    ("order", lambda: nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=10**9)),
    ("kernels", lambda: nth.DenseHierarchy(formed(), make_problem(3, 2))),
    ("order", lambda: nth.cheaper_method(NETWORK, PROBLEM, order=10**9)),
    ("problem", lambda: nth.cheaper_method(NETWORK, None, order=2)),
    ("kernels", lambda: nth.closed_form(None, PROBLEM, [1.0])),
    ("problem", lambda: nth.closed_form(formed(), None, [1.0])),
    ("ts", lambda: nth.closed_form(formed(), PROBLEM, [np.nan])),
    ("kernels", lambda: nth.perturbative(formed(3), PROBLEM, [1.0])),
    ("problem", lambda: nth.displacement(NETWORK, None, [1.0])),
    ("kernels", lambda: nth.spectrum(PROBLEM)),
    ("kernels", lambda: nth.spectrum(None)),
    ("problem", lambda: nth.kernels(NETWORK, None, order=2)),
    ("order", lambda: nth.kernels(NETWORK, PROBLEM, order=1)),
    ("block_size", lambda: nth.kernels(NETWORK, PROBLEM, order=2, block_size=0)),
    ("order", lambda: nth.project(NETWORK, PROBLEM, 2, order=10**9)),
    ("modes", lambda: nth.project(NETWORK, PROBLEM, 0, order=2)),
    ("modes", lambda: nth.project(NETWORK, PROBLEM, np.ones(3), order=2)),
    ("order", lambda: nth.contract(NETWORK, PROBLEM, [None], order=10**9)),
    ("vectors", lambda: nth.contract(NETWORK, PROBLEM, [], order=2)),
    ("vectors", lambda: nth.contract(NETWORK, PROBLEM, ["all"], order=2)),
    ("problem", lambda: nth.layer_kernels(NETWORK, None)),
    ("sigma_a", lambda: nth.nngp(NETWORK, PROBLEM, sigma_a=-1)),
    ("network", lambda: nth.nngp(None, PROBLEM)),
)
def test_dynamics_and_kernels_name_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


def compare(**options: Any) -> Any:
    data, ts = options.pop("problem", PROBLEM), options.pop("ts", [1.0])
    return nth.compare(NETWORK, data, ts, options.pop("orders", (2,)), **options)


def model(**options: Any) -> Call:
    return lambda: compare(models={"other": nth.GradientFlow(NETWORK, **options)})


LAST = eqx.tree_at(
    lambda network: network.weights,
    jax.tree.map(lambda _: False, NETWORK),
    (False, True),
)

OTHER_LOSS = typed_nth.Problem(
    PROBLEM.x_train, PROBLEM.y_train, PROBLEM.x_test, loss=typed_nth.LogisticLoss()
)


@refused(
    ("problem", lambda: compare(problem=None)),
    ("ts", lambda: compare(ts=[2.0, 1.0])),
    ("orders", lambda: compare(orders=())),
    ("orders", lambda: compare(orders=3)),
    ("orders", lambda: compare(orders=(2, 10**9))),
    ("orders", lambda: compare(orders=None)),
    ("models", lambda: compare(models=[FLOW])),
    ("models", lambda: compare(models=FLOW)),
    ("models", lambda: compare(models={"truth": FLOW})),
    ("models", lambda: compare(models={3: FLOW})),
    ("models", lambda: compare(models={"other": NETWORK})),
    ("models", model(problem=make_problem(seed=1))),
    ("models", model(problem=OTHER_LOSS)),
    ("weight_decay", model(problem=PROBLEM, weight_decay=0.1)),
    ("learning_rates", model(problem=PROBLEM, learning_rates=2.0)),
    ("filter_spec", model(problem=PROBLEM, filter_spec=LAST)),
    ("y_test", lambda: compare(y_test=[1.0])),
    ("y_test", lambda: compare(y_test="labels")),
    ("method", lambda: compare(method="sparse")),
    ("solver", lambda: compare(solver=diffrax.Euler())),
    ("checkpoint", lambda: compare(checkpoint=3)),
)
def test_compare_names_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


def descend(steps: Any = 2, optimizer: Any = OPTIMIZER, **options: Any) -> Any:
    return nth.train(NETWORK, PROBLEM, steps, optimizer, **options)


def step_kernels(rate: Any = 0.1, order: int = 2) -> Any:
    return nth.step_kernels(NETWORK, PROBLEM, rate, order=order)


def compare_discrete(orders: Any = (2,), **options: Any) -> Any:
    return nth.compare_discrete(NETWORK, PROBLEM, 2, OPTIMIZER, orders, **options)


@refused(
    ("batch_size", lambda: descend(batch_size=0, key=KEY)),
    ("key", lambda: descend(batch_size=2)),
    ("key", lambda: descend(batch_size=2, key=0)),
    ("batch_size", lambda: descend(batch_size=5, key=KEY)),
    ("batch_size", lambda: descend(batch_size="some", key=KEY)),
    ("batches", lambda: descend(batches=[[0], [9]])),
    ("batches", lambda: descend(batches=[[0], [-1]])),
    ("batches", lambda: descend(batches=[[0.5], [1]])),
    ("batches", lambda: descend(batches=[[0]])),
    ("batches", lambda: descend(batches="some")),
    ("optimizer", lambda: descend(optimizer=0.1)),
    ("optimizer", lambda: descend(optimizer=optax.polyak_sgd())),
    ("orders", lambda: compare_discrete(())),
    ("y_test", lambda: compare_discrete(y_test=[1.0])),
    ("steps", lambda: descend(HUGE)),
    ("steps", lambda: descend([0, HUGE])),
    ("steps", lambda: descend(1.5)),
    ("steps", lambda: descend(-1)),
    ("steps", lambda: descend([2, 1])),
    ("steps", lambda: descend([[1], [1, 2]])),
    ("steps", lambda: descend(None)),
    ("steps", lambda: descend(True)),
    ("problem", lambda: nth.solve_discrete(NETWORK, None, 2, OPTIMIZER, order=2)),
    ("order", lambda: nth.solve_discrete(NETWORK, PROBLEM, 2, OPTIMIZER, order=10**9)),
    ("learning_rate", lambda: step_kernels(-0.1)),
    ("learning_rate", lambda: step_kernels(jnp.inf)),
    ("learning_rate", lambda: step_kernels("some")),
    ("order", lambda: step_kernels(order=1)),
    ("order", lambda: step_kernels(order=10**9)),
    ("optimizer", lambda: nth.max_learning_rate(NETWORK, PROBLEM, 0.1)),
    ("optimizer", lambda: nth.max_learning_rate(NETWORK, PROBLEM, optax.adam(0.1))),
    ("problem", lambda: nth.max_learning_rate(NETWORK, None)),
)
def test_discrete_names_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)


def catapult(**options: Any) -> Any:
    given = {"output": 0.1, "ntk": 1.0, "learning_rate": 1.0, "width": 8, "steps": 2}
    return nth.catapult(**given | options)


@refused(
    ("output", lambda: catapult(output=np.nan)),
    ("output", lambda: catapult(output=[0.1])),
    ("ntk", lambda: catapult(ntk=-1.0)),
    ("ntk", lambda: catapult(output=8.0)),  # no network of width 8 has this NTK
    ("learning_rate", lambda: catapult(learning_rate=-0.1)),
    ("learning_rate", lambda: catapult(learning_rate="fast")),
    ("target", lambda: catapult(target=np.inf)),
    ("width", lambda: catapult(width=0)),
    ("steps", lambda: catapult(steps=HUGE)),
    ("steps", lambda: catapult(steps=-1)),
)
def test_catapult_names_the_bad_argument(argument: str, call: Call) -> None:
    expect(argument, call)
