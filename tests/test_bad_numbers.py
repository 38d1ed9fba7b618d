"""Arrays of valid shape and invalid values: not a kernel, too large, or too small.

The cures that the messages name are tested as well.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")

Call = Callable[[], Any]

PROBLEM = make_problem()
NETWORK = make_network(3, 1)
GRAM = np.asarray(PROBLEM.x @ PROBLEM.x.T)  # 6 points of 3 dimensions: rank 3
ASYMMETRIC = GRAM + np.triu(np.full((6, 6), 0.1), 1)
ONES = [np.ones((6,) + (4,) * (r - 1)) for r in range(3, 5)]


@pytest.fixture
def float32() -> Any:
    """JAX without `jax_enable_x64`, its default."""
    with jax.enable_x64(False):
        yield


def formed(gram: Any) -> Any:
    """Kernels up to K(4), with an NTK of `gram` on the points of `PROBLEM`."""
    tensors = [np.ones(6), gram[:, :4], *ONES]
    return nth.Kernels(tuple(map(jnp.asarray, tensors)))


def expect(message: str, call: Call) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("solve", [nth.closed_form, nth.perturbative])
def test_indefinite_and_asymmetric_ntks_are_refused(solve: Callable[..., Any]) -> None:
    expect(
        "kernels have an eigenvalue of -", lambda: solve(formed(-GRAM), PROBLEM, [1])
    )
    message = (
        "kernels are not symmetric: two entries that must be equal differ by 0.1. "
    )
    expect(message, lambda: solve(formed(ASYMMETRIC), PROBLEM, [1]))


@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_indefinite_and_asymmetric_infinite_kernels_are_refused(name: str) -> None:
    def solve(gram: Any) -> Any:
        kernels = nth.infinite.InfiniteKernels(
            **{"nngp": GRAM, "ntk": GRAM, name: gram}
        )
        return nth.infinite.ensemble(kernels, PROBLEM, [1.0])

    expect(f"kernels.{name} have an eigenvalue of -", lambda: solve(-GRAM))
    expect(f"kernels.{name} are not symmetric", lambda: solve(ASYMMETRIC))
    assert np.all(np.isfinite(solve(GRAM).mean))


def test_kernels_with_rounding_error_are_accepted() -> None:
    """Neither eigenvalues just below 0, nor a kernel cast from float32, are errors."""
    rounded = (GRAM - 1e-12 * np.eye(6)).astype(np.float32).astype(float)
    rounded = rounded + np.triu(np.full((6, 6), 1e-7), 1)
    assert np.linalg.eigvalsh(GRAM - 1e-12 * np.eye(6))[0] < 0
    exact = nth.closed_form(formed(GRAM), PROBLEM, [1.0]).train
    actual = nth.closed_form(formed(rounded), PROBLEM, [1.0]).train
    np.testing.assert_allclose(actual, exact, atol=1e-6)


def test_traced_kernels_are_not_checked() -> None:
    def train(gram: Any) -> Any:
        return nth.closed_form(formed(gram), PROBLEM, [1.0]).train

    np.testing.assert_allclose(jax.jit(train)(jnp.asarray(GRAM)), train(GRAM))


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e30, 1e-30, 1.0])
def test_check_data_scales_although_squares_overflow(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6))
    plain, check = (nth.theory.check_data(s * x) for s in (1.0, scale))
    np.testing.assert_allclose(check.norms, np.multiply(scale, plain.norms))
    assert check.c == min(check.norms[0], 1 / check.norms[1])
    assert check.holds


def test_check_data_scales_although_squares_overflow_float32(float32: None) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6))
    check = nth.theory.check_data(x * 1e30)
    np.testing.assert_allclose(check.c, 1e-30 / np.linalg.norm(x, axis=1).max(), 1e-6)
    assert check.holds


@pytest.mark.parametrize("number", [1e-300, 1e300, -1e-60])
@pytest.mark.parametrize("argument", ["x_train", "y_train", "x_test"])
def test_numbers_that_do_not_fit_float32_are_refused(
    argument: str, number: float, float32: None
) -> None:
    given = {"x_train": np.ones((2, 1)), "y_train": np.ones(2)}
    given[argument] = np.full((2,) if argument == "y_train" else (2, 1), number)
    message = f"{argument} holds {number}, which does not fit float32"
    expect(message, lambda: nth.Problem(**given))


def test_small_numbers_among_larger_ones_are_rounded(float32: None) -> None:
    problem = nth.Problem([[1e-300], [1.0]], [0.0, 0.0])
    np.testing.assert_array_equal(problem.x_train, [[0.0], [1.0]])


def other_loss() -> Any:
    loss = nth.LogisticLoss()
    return nth.Problem(PROBLEM.x_train, PROBLEM.y_train, PROBLEM.x_test, loss=loss)


def test_squared_error_is_the_cure_where_no_other_loss_is_supported() -> None:
    kernels = nth.infinite.InfiniteKernels(GRAM, GRAM)
    calls: list[Call] = [
        lambda: nth.theory.laziness(NETWORK, other_loss()),
        lambda: nth.infinite.ensemble(kernels, other_loss(), [1.0]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^problem .* nth.Problem") as raised:
            call()
        assert "nth.solve" not in str(raised.value)
    cure = nth.Problem(PROBLEM.x_train, PROBLEM.y_train)
    assert nth.theory.laziness(NETWORK, cure, starts=1) > 0


def test_statistic_must_return_positive_numbers() -> None:
    def fit(statistic: Any, values: Any = np.ones((3, 4))) -> Any:
        return nth.scaling.fit([1, 2, 4], values, statistic=statistic)

    message = (
        "statistic must return 3 finite real numbers, one for each width; got array("
    )
    expect(message, lambda: fit(lambda v, axis: 1j * np.mean(v, axis)))
    expect(message, lambda: fit(lambda v, axis: ["a"] * 3))
    expect("statistic is zero at widths [1.0, 2.0, 4.0]", lambda: fit(np.var))
    expect("values are zero at widths [2.0]", lambda: fit(None, [1.0, 0.0, 2.0]))


def test_overflow_by_learning_rates_is_named() -> None:
    message = "K(3) has NaN or infinite entries: learning_rates of "
    cure = (
        "are too large for float64. Give smaller ones: a common factor of all of them"
    )

    def form(rate: float) -> Any:
        return nth.kernels(NETWORK, PROBLEM, order=3, learning_rates=rate)

    expect(f"{message}1e+200 {cure}", lambda: form(1e200))
    expect(f"{message}1e+160 {cure}", lambda: form(1e160))
    assert form(1e100).order == 3
    for rate in (1e160, 1e308):
        with pytest.raises(ValueError, match=rf"^learning_rates of .* {cure}"):
            nth.max_learning_rate(NETWORK, PROBLEM, learning_rates=rate)


def test_kernels_without_an_ntk_are_refused() -> None:
    kernels = nth.Kernels((jnp.ones(6),))
    calls: list[Call] = [
        lambda: nth.spectrum(kernels),
        lambda: nth.theory.bounds(kernels, 10),
        lambda: nth.closed_form(kernels, PROBLEM, [1.0]),
        lambda: nth.perturbative(kernels, PROBLEM, [1.0]),
        lambda: nth.DenseHierarchy(kernels, PROBLEM),
    ]
    for call in calls:
        expect("kernels hold K(1) alone, and K(2) is needed: form them by", call)


LOSSES = [
    nth.SquaredError(),
    nth.LogisticLoss(),
    nth.SoftmaxCrossEntropy(),
    nth.CustomLoss(lambda f, y: jnp.sum((f - y) ** 2)),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses_check_outputs_and_targets(loss: Any) -> None:
    for method in (loss, loss.gradient):
        expect(
            "targets has shape (2,) and outputs (3, 2): give one target for each point",
            lambda method=method: method(np.ones((3, 2)), np.ones(2)),
        )
        expect("outputs must", lambda method=method: method(None, np.ones(2)))
        expect("targets must", lambda method=method: method(np.ones(2), None))
        expect("outputs must be float", lambda method=method: method([1, 2], [1.0, 1]))
        expect("outputs must be float", lambda method=method: method(1.0, 1.0))


@pytest.mark.parametrize("loss", LOSSES[:3], ids=lambda loss: type(loss).__name__)
def test_losses_check_the_output_and_target_of_one_point(loss: Any) -> None:
    expect("target of one point must", lambda: loss.pointwise(np.ones(3), np.ones(2)))
    expect("target of one point must", lambda: loss(np.ones((4, 3)), np.ones((4, 2))))
    expect("target must", lambda: loss.pointwise(np.ones(3), None))
    expect("output must", lambda: loss.pointwise("a", 1.0))
    assert loss.pointwise([0.5, 1.0], [0.0, 1.0]).shape == ()


def test_matched_to_checks_the_output() -> None:
    matched_to: Any = PROBLEM.matched_to
    for output in ("a", None, 3, (2,)):
        expect("output must be one output", lambda o=output: matched_to(o))
    output = jax.eval_shape(NETWORK, PROBLEM.x_train[0])
    assert PROBLEM.matched_to(output).n_train == 4


@pytest.mark.parametrize(
    "tensors",
    [
        (jnp.ones(3), jnp.ones((3, 4))),
        (jnp.ones(0), jnp.ones((0, 0))),
        (jnp.ones(3, int), jnp.ones((3, 3), int)),
        (jnp.ones(3, complex), jnp.ones((3, 3), complex)),
    ],
)
def test_arrays_that_are_not_kernels_are_refused(tensors: Any) -> None:
    expect(
        "tensors must be K(1), K(2) and so on, floating", lambda: nth.Kernels(tensors)
    )


def test_kernels_from_arrays_are_checked() -> None:
    rows = (jnp.ones(1), jnp.ones((1, 3)))
    assert nth.Kernels(rows, complete=False).order == 2
    expect("complete must be True or False", lambda: nth.Kernels(rows, complete="a"))
    asymmetric = nth.Kernels((jnp.ones(3), jnp.arange(9.0).reshape(3, 3)))
    expect("kernels are not symmetric", lambda: nth.spectrum(asymmetric))
    indefinite = nth.Kernels((jnp.ones(3), jnp.diag(jnp.array([1.0, 0.5, -0.5]))))
    np.testing.assert_allclose(nth.spectrum(indefinite).eigenvalues, [1, 0.5, -0.5])


def test_arrays_that_are_not_modes_are_refused() -> None:
    for modes in ([[1.0], [1.0, 2.0]], 2.0, None, "a"):
        expect(
            "modes must",
            lambda modes=modes: nth.project(NETWORK, PROBLEM, modes, order=2),
        )


def test_overflow_by_scales_is_named() -> None:
    def infinite(**options: Any) -> Any:
        return nth.infinite.kernels(np.eye(3), depth=2, activation="relu", **options)

    message = "kernels have NaN or infinite entries: rescale x1, x2, sigma_w"
    expect(message, lambda: infinite(sigma_w=1e200))
    message = "NNGP kernel has NaN or infinite entries: give smaller sigma_a"
    expect(message, lambda: nth.nngp(NETWORK, PROBLEM, sigma_a=1e160))
    message = "vectors are so large that the sum overflows"
    large = [np.full(4, 1e200)] * 2
    expect(message, lambda: nth.contract(NETWORK, PROBLEM, large, order=3))


def test_weight_decay_that_does_not_fit_float32_is_refused(float32: None) -> None:
    problem = nth.Problem(np.eye(3), np.ones(3))
    network = nth.MLP(3, 3, 1, key=jax.random.key(0))
    for dynamics in (
        nth.GradientFlow,
        lambda *a, **k: nth.MatrixFreeHierarchy(*a, order=2, **k),
    ):
        call = lambda d=dynamics: d(network, problem, weight_decay=1e300)  # noqa: E731
        expect("weight_decay does not fit float32", call)


def test_bounds_that_overflow_are_infinite() -> None:
    kernels = nth.Kernels(
        (jnp.ones(6), jnp.concatenate([jnp.eye(4), jnp.ones((2, 4))]))
    )
    for power in (0.0, 2.0, 300.0, 1e308):
        bounds = nth.theory.bounds(kernels, 100, log_power=power, constant=10.0)
        assert bounds.width_to_converge() > 0
        assert bounds.kernel_error(12, 1e300) == np.inf
        expect("order must be at most 12", lambda b=bounds: b.kernel_error(13, 1.0))


def test_widths_of_catapults_that_do_not_fit_float32_are_refused() -> None:
    for width in (10**400, 10**50):
        expect(
            "width must be at most 1000000000000000000000000000000, which fits float32",
            lambda width=width: nth.catapult(0.1, 1.0, 0.1, width, 3),
        )


def measure(later: Any) -> Any:
    """A sweep whose measure is valid at width 2 and is `later` at other widths."""

    def at(width: int, key: Any) -> Any:
        return jnp.ones(()) if width == 2 else later(key)

    return lambda: nth.scaling.sweep(at, [2, 3], 2, key=jax.random.key(0))


def test_measures_must_agree_between_widths() -> None:
    expect("measure at width 3", measure(lambda key: {"a": jnp.ones(())}))
    expect("measure at width 3", measure(lambda key: jnp.ones((), jnp.float32)))
    expect("measure must return floating scalars", measure(lambda key: jnp.ones(2)))
    expect("measure failed for the width 3", measure(lambda key: key.nothing))


def test_custom_losses_must_return_a_scalar() -> None:
    for value in ("a", None, jnp.ones(2)):
        loss = nth.CustomLoss(lambda f, y, value=value: value)
        expect(
            "fn must return a scalar", lambda loss=loss: loss(np.ones(2), np.ones(2))
        )
    assert nth.CustomLoss(lambda f, y: 2.0)(np.ones(2), np.ones(2)) == 2
