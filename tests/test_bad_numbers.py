"""Numbers that are of the right shape and wrong: no kernel, too large, or too small.

And the cures that messages name, each of which works.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # wrong types are the point here
Call = Callable[[], Any]

PROBLEM = make_problem()
NETWORK = make_network(3, 1)
GRAM = np.asarray(PROBLEM.x @ PROBLEM.x.T)  # 6 points of 3 dimensions: rank 3
ASYMMETRIC = GRAM + np.triu(np.full((6, 6), 0.1), 1)
ONES = [np.ones((6,) + (4,) * (r - 1)) for r in range(3, 5)]


@pytest.fixture(autouse=True)
def users_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user has no type checker between them and our messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def float32() -> Any:
    """As JAX is without `jax_enable_x64`."""
    with jax.enable_x64(False):
        yield


def formed(gram: Any) -> Any:
    """Kernels up to K(4), with an NTK of `gram` on the points of `PROBLEM`."""
    tensors = [np.ones(6), gram[:, :4], *ONES]
    return nth.Kernels(tuple(map(jnp.asarray, tensors)))


def expect(words: str, call: Call) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


@pytest.mark.parametrize("solve", [nth.closed_form, nth.perturbative])
def test_ntk_that_is_none(solve: Callable[..., Any]) -> None:
    expect(
        "kernels have an eigenvalue of -", lambda: solve(formed(-GRAM), PROBLEM, [1])
    )
    words = "kernels are not symmetric: two entries that must be equal differ by 0.1. "
    expect(words, lambda: solve(formed(ASYMMETRIC), PROBLEM, [1]))


@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_kernels_of_no_infinite_network(name: str) -> None:
    def solve(gram: Any) -> Any:
        kernels = nth.infinite.InfiniteKernels(
            **{"nngp": GRAM, "ntk": GRAM, name: gram}
        )
        return nth.infinite.ensemble(kernels, PROBLEM, [1.0])

    expect(f"kernels.{name} have an eigenvalue of -", lambda: solve(-GRAM))
    expect(f"kernels.{name} are not symmetric", lambda: solve(ASYMMETRIC))
    assert np.all(np.isfinite(solve(GRAM).mean))


def test_rounding_of_a_kernel_is_no_fault() -> None:
    """Neither eigenvalues just below 0, nor those of a kernel cast from float32."""
    rounded = (GRAM - 1e-12 * np.eye(6)).astype(np.float32).astype(float)
    rounded = rounded + np.triu(np.full((6, 6), 1e-7), 1)
    assert np.linalg.eigvalsh(GRAM - 1e-12 * np.eye(6))[0] < 0
    exact = nth.closed_form(formed(GRAM), PROBLEM, [1.0]).train
    found = nth.closed_form(formed(rounded), PROBLEM, [1.0]).train
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_traced_kernels_are_not_checked() -> None:
    def train(gram: Any) -> Any:
        return nth.closed_form(formed(gram), PROBLEM, [1.0]).train

    np.testing.assert_allclose(jax.jit(train)(jnp.asarray(GRAM)), train(GRAM))


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e30, 1e-30, 1.0])
def test_data_whose_squares_do_not_fit(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6))
    plain, check = (nth.theory.check_data(s * x) for s in (1.0, scale))
    np.testing.assert_allclose(check.norms, np.multiply(scale, plain.norms))
    assert check.c == min(check.norms[0], 1 / check.norms[1])
    assert check.holds


def test_data_of_float32_whose_squares_do_not_fit(float32: None) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6))
    check = nth.theory.check_data(x * 1e30)
    np.testing.assert_allclose(check.c, 1e-30 / np.linalg.norm(x, axis=1).max(), 1e-6)
    assert check.holds


@pytest.mark.parametrize("number", [1e-300, 1e300, -1e-60])
@pytest.mark.parametrize("argument", ["x_train", "y_train", "x_test"])
def test_numbers_that_do_not_fit_float32(
    argument: str, number: float, float32: None
) -> None:
    given = {"x_train": np.ones((2, 1)), "y_train": np.ones(2)}
    given[argument] = np.full((2,) if argument == "y_train" else (2, 1), number)
    words = f"{argument} holds {number}, which does not fit float32"
    expect(words, lambda: nth.Problem(**given))


def test_small_numbers_beside_others_are_rounded(float32: None) -> None:
    problem = nth.Problem([[1e-300], [1.0]], [0.0, 0.0])
    np.testing.assert_array_equal(problem.x_train, [[0.0], [1.0]])


def other_loss() -> Any:
    loss = nth.LogisticLoss()
    return nth.Problem(PROBLEM.x_train, PROBLEM.y_train, PROBLEM.x_test, loss=loss)


def test_squared_error_is_named_where_no_other_loss_can_be() -> None:
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


def test_statistic_of_a_sweep() -> None:
    def fit(statistic: Any, values: Any = np.ones((3, 4))) -> Any:
        return nth.scaling.fit([1, 2, 4], values, statistic=statistic)

    words = (
        "statistic must return 3 finite real numbers, one for each width; got array("
    )
    expect(words, lambda: fit(lambda v, axis: 1j * np.mean(v, axis)))
    expect(words, lambda: fit(lambda v, axis: ["a"] * 3))
    expect("statistic is zero at widths [1.0, 2.0, 4.0]", lambda: fit(np.var))
    expect("values are zero at widths [2.0]", lambda: fit(None, [1.0, 0.0, 2.0]))


def test_learning_rates_that_overflow() -> None:
    words = "K(3) has NaN or infinite entries: learning_rates of "
    cure = (
        "are too large for float64. Give smaller ones: a common factor of all of them"
    )

    def form(rate: float) -> Any:
        return nth.kernels(NETWORK, PROBLEM, order=3, learning_rates=rate)

    expect(f"{words}1e+200 {cure}", lambda: form(1e200))
    expect(f"{words}1e+160 {cure}", lambda: form(1e160))
    assert form(1e100).order == 3
    for rate in (1e160, 1e308):
        with pytest.raises(ValueError, match=rf"^learning_rates of .* {cure}"):
            nth.max_learning_rate(NETWORK, PROBLEM, learning_rates=rate)


def test_kernels_without_an_ntk() -> None:
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
def test_outputs_and_targets_of_a_loss(loss: Any) -> None:
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
def test_output_and_target_of_one_point(loss: Any) -> None:
    expect("target of one point must", lambda: loss.pointwise(np.ones(3), np.ones(2)))
    expect("target of one point must", lambda: loss(np.ones((4, 3)), np.ones((4, 2))))
    expect("target must", lambda: loss.pointwise(np.ones(3), None))
    expect("output must", lambda: loss.pointwise("a", 1.0))
    assert loss.pointwise([0.5, 1.0], [0.0, 1.0]).shape == ()


def test_output_of_a_network() -> None:
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
def test_kernels_that_are_none(tensors: Any) -> None:
    expect(
        "tensors must be K(1), K(2) and so on, floating", lambda: nth.Kernels(tensors)
    )


def test_kernels_by_hand() -> None:
    rows = (jnp.ones(1), jnp.ones((1, 3)))
    assert nth.Kernels(rows, complete=False).order == 2
    expect("complete must be True or False", lambda: nth.Kernels(rows, complete="a"))
    asymmetric = nth.Kernels((jnp.ones(3), jnp.arange(9.0).reshape(3, 3)))
    expect("kernels are not symmetric", lambda: nth.spectrum(asymmetric))
    indefinite = nth.Kernels((jnp.ones(3), jnp.diag(jnp.array([1.0, 0.5, -0.5]))))
    np.testing.assert_allclose(nth.spectrum(indefinite).eigenvalues, [1, 0.5, -0.5])


def test_modes_that_are_none() -> None:
    for modes in ([[1.0], [1.0, 2.0]], 2.0, None, "a"):
        expect(
            "modes must",
            lambda modes=modes: nth.project(NETWORK, PROBLEM, modes, order=2),
        )


def test_scales_that_overflow() -> None:
    def infinite(**options: Any) -> Any:
        return nth.infinite.kernels(np.eye(3), depth=2, activation="relu", **options)

    words = "kernels have NaN or infinite entries: rescale x1, x2, sigma_w"
    expect(words, lambda: infinite(sigma_w=1e200))
    words = "NNGP kernel has NaN or infinite entries: give smaller sigma_a"
    expect(words, lambda: nth.nngp(NETWORK, PROBLEM, sigma_a=1e160))
    words = "vectors are so large that the sum overflows"
    large = [np.full(4, 1e200)] * 2
    expect(words, lambda: nth.contract(NETWORK, PROBLEM, large, order=3))


def test_weight_decay_that_does_not_fit(float32: None) -> None:
    problem = nth.Problem(np.eye(3), np.ones(3))
    network = nth.MLP(3, 3, 1, key=jax.random.key(0))
    for dynamics in (
        nth.GradientFlow,
        lambda *a, **k: nth.MatrixFreeHierarchy(*a, order=2, **k),
    ):
        call = lambda d=dynamics: d(network, problem, weight_decay=1e300)  # noqa: E731
        expect("weight_decay does not fit float32", call)


def test_bounds_that_overflow() -> None:
    kernels = nth.Kernels(
        (jnp.ones(6), jnp.concatenate([jnp.eye(4), jnp.ones((2, 4))]))
    )
    for power in (0.0, 2.0, 300.0, 1e308):
        bounds = nth.theory.bounds(kernels, 100, log_power=power, constant=10.0)
        assert bounds.width_to_converge() > 0
        assert bounds.kernel_error(12, 1e300) == np.inf
        expect("order must be at most 12", lambda b=bounds: b.kernel_error(13, 1.0))


def test_width_of_a_catapult() -> None:
    for width in (10**400, 10**50):
        expect(
            "width must be at most 1000000000000000000000000000000, which fits float32",
            lambda width=width: nth.catapult(0.1, 1.0, 0.1, width, 3),
        )


def measure(later: Any) -> Any:
    """A measure that is good at width 2, and gives `later` at any other."""

    def at(width: int, key: Any) -> Any:
        return jnp.ones(()) if width == 2 else later(key)

    return lambda: nth.scaling.sweep(at, [2, 3], 2, key=jax.random.key(0))


def test_measure_that_differs_between_widths() -> None:
    expect("measure at width 3", measure(lambda key: {"a": jnp.ones(())}))
    expect("measure at width 3", measure(lambda key: jnp.ones((), jnp.float32)))
    expect("measure must return floating scalars", measure(lambda key: jnp.ones(2)))
    expect("measure failed for the width 3", measure(lambda key: key.nothing))


def test_loss_function_that_gives_no_scalar() -> None:
    for value in ("a", None, jnp.ones(2)):
        loss = nth.CustomLoss(lambda f, y, value=value: value)
        expect(
            "fn must return a scalar", lambda loss=loss: loss(np.ones(2), np.ones(2))
        )
    assert nth.CustomLoss(lambda f, y: 2.0)(np.ones(2), np.ones(2)) == 2
