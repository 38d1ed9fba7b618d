"""States and vectors of other dynamics, passed to the methods of dynamics.

Every public method refuses them by their structure, shapes and dtypes.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_network, make_problem

import nth as typed_nth

nth: Any = typed_nth  # arguments of wrong types are intended
pytestmark = pytest.mark.usefixtures("without_type_checks")

PROBLEM = make_problem()
NETWORK = make_network(3, 1)
KERNELS = typed_nth.Kernels(
    (jnp.ones(6), jnp.ones((6, 4)), jnp.ones((6, 4, 4)), jnp.ones((6, 4, 4, 4)))
)
DYNAMICS = {
    "dense-2": nth.DenseHierarchy(KERNELS, PROBLEM, order=2),
    "dense-3": nth.DenseHierarchy(KERNELS, PROBLEM, order=3),
    "matrix-free-2": nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=2),
    "matrix-free-3": nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=3),
    "decaying": nth.MatrixFreeHierarchy(NETWORK, PROBLEM, order=2, weight_decay=0.1),
    "wider": nth.MatrixFreeHierarchy(make_network(4, 1), PROBLEM, order=2),
    "flow": nth.GradientFlow(NETWORK, PROBLEM),
    "decaying-flow": nth.GradientFlow(make_network(4, 2), PROBLEM, weight_decay=0.1),
    "taylorized": nth.TaylorizedFlow(make_network(2, 1), PROBLEM, degree=1),
}
KERNEL = [name for name in DYNAMICS if name != "taylorized"]
DESCENT = [name for name in KERNEL if "dense" not in name]
VECTOR = np.ones(4)
STATES = {name: dynamics.initial_state() for name, dynamics in DYNAMICS.items()}
FOREIGN: dict[str, Any] = {
    "none": None,
    "number": 1.0,
    "array": jnp.ones(3),
    "parameters": [jnp.ones(3)],
    **STATES,
}


METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "outputs": lambda d, s: d.outputs(s),
    "loss": lambda d, s: d.loss(s),
    "vector_field": lambda d, s: d.vector_field(0.0, s, None),
    "output_rates": lambda d, s: d.output_rates(jnp.zeros(()), s),
}
OF_KERNELS: dict[str, Callable[[Any, Any], Any]] = {
    "ntk": lambda d, s: d.ntk(s),
    "ntk_product": lambda d, s: d.ntk_product(s, VECTOR),
}
OF_DESCENTS: dict[str, Callable[[Any, Any], Any]] = {
    "gradient": lambda d, s: d.gradient(s, PROBLEM.x_train, PROBLEM.y_train),
    "slope": lambda d, s: d.slope(s, PROBLEM.x_train, PROBLEM.y_train),
    "parameters": lambda d, s: d.parameters(s),
    "penalty": lambda d, s: d.penalty(s),
}
CALLS = [
    *[(name, method) for name in DYNAMICS for method in METHODS.items()],
    *[(name, method) for name in KERNEL for method in OF_KERNELS.items()],
    *[(name, method) for name in DESCENT for method in OF_DESCENTS.items()],
]


@pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*c, id=f"{c[0]}-{c[1][0]}") for c in CALLS]
)
def test_states_of_other_dynamics_are_refused(
    name: str, method: tuple[str, Any]
) -> None:
    series = {
        "matrix-free-2",
        "decaying",
    }  # each computes the outputs of the other's state
    accepted = series if name in series else {name}
    for other, state in FOREIGN.items():
        if other not in accepted:
            with pytest.raises(ValueError, match=r"^state"):
                method[1](DYNAMICS[name], state)


@pytest.mark.parametrize(
    "state", [{}, [], None, jax.tree.map(np.asarray, STATES["dense-3"])[:1]]
)
def test_incomplete_states_are_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"^state"):
        DYNAMICS["dense-3"].outputs(state)
    with pytest.raises(ValueError, match=r"^state"):
        DYNAMICS["decaying"].penalty(state)


def test_states_of_lower_precision_are_refused() -> None:
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), STATES["flow"])
    message = r"^state\.weights\[0\] must have shape .* float64.* got .* float32"
    with pytest.raises(ValueError, match=message):
        DYNAMICS["flow"].outputs(state)


@pytest.mark.parametrize("name", KERNEL)
@pytest.mark.parametrize(
    "vector", [None, 1.0, np.ones(6), np.ones((4, 1)), [1.0] * 4, VECTOR.astype("f4")]
)
def test_vectors_must_match_the_training_points(name: str, vector: Any) -> None:
    with pytest.raises(ValueError, match=r"^vector"):
        DYNAMICS[name].ntk_product(STATES[name], vector)


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("outputs", [None, 1.0, np.ones(4), np.ones((6, 2)), "abc"])
def test_outputs_must_match_the_training_points(name: str, outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"\boutputs?\b"):
        DYNAMICS[name].output_gradient(outputs)


@pytest.mark.parametrize("name", DESCENT)
def test_points_and_directions_must_match_the_network(name: str) -> None:
    dynamics, state = DYNAMICS[name], STATES[name]
    x, y = PROBLEM.x_train, PROBLEM.y_train
    for other in (None, x[:, :2], x[0], x.astype(jnp.float32), {"x": x}):
        with pytest.raises(ValueError, match=r"^x\b"):
            dynamics.gradient(state, other, y)
        with pytest.raises(ValueError, match=r"^x\b"):
            dynamics.over(dynamics.params, other)
    with pytest.raises(ValueError, match=r"^y has shape \(3,\) and x 4 points"):
        dynamics.gradient(state, x, y[:3])
    for other in (None, x, STATES["dense-2"]):
        with pytest.raises(ValueError, match=r"^direction"):
            dynamics.scaled(other)
        with pytest.raises(ValueError, match=r"^params"):
            dynamics.over(other, x)


@pytest.mark.parametrize("name", ["matrix-free-2", "decaying"])
def test_states_with_and_without_weight_decay_are_distinguished(name: str) -> None:
    """Outputs do not depend on weight decay, and the vector field does."""
    other = "decaying" if name != "decaying" else "matrix-free-2"
    with pytest.raises(ValueError, match=r"^state .* weight_decay.*give both the same"):
        DYNAMICS[name].vector_field(0.0, STATES[other], None)
    outputs = DYNAMICS[name].outputs(STATES[other])
    np.testing.assert_allclose(outputs, DYNAMICS[name].outputs(STATES[name]))


def test_checks_add_nothing_to_the_jaxpr() -> None:
    """Checks concern the structure only, and add nothing to a compiled solve."""
    dynamics, state = DYNAMICS["flow"], STATES["flow"]
    jaxpr = str(jax.make_jaxpr(lambda s: dynamics.vector_field(0.0, s, None))(state))
    assert "callback" not in jaxpr
    assert "cond" not in jaxpr


class CustomDynamics(typed_nth.AbstractDynamics):
    """User-defined dynamics with any initial state and outputs."""

    problem: Any
    start: Any
    fixed_outputs: Any
    field: Any = staticmethod(lambda state: state)
    norm: Any = staticmethod(lambda scaled: jnp.sqrt(jnp.sum(scaled**2)))
    label: str = "custom"
    method: ClassVar[str] = "custom"
    truncated: ClassVar[bool] = False

    def initial_state(self) -> Any:
        return self.start

    def vector_field(self, t: Any, state: Any, args: Any) -> Any:
        return self.field(state)

    def outputs(self, state: Any) -> Any:
        return self.fixed_outputs

    def penalty(self, state: Any) -> Any:
        return jnp.zeros(())

    def error_norm(self, scaled: Any) -> Any:
        return self.norm(scaled)


def custom(start: Any, fixed_outputs: Any, **functions: Any) -> Any:
    return CustomDynamics(
        problem=PROBLEM, start=start, fixed_outputs=fixed_outputs, **functions
    )


@pytest.mark.parametrize("start", [None, {}, "a", 1.0, jnp.arange(3)])
def test_initial_state_of_custom_dynamics_is_checked(start: Any) -> None:
    custom_dynamics = custom(start, jnp.ones(6))
    with pytest.raises(
        ValueError, match=r"^dynamics: initial_state\(\) must be a pytree"
    ):
        nth.integrate(custom_dynamics, [1.0])


@pytest.mark.parametrize("outputs", [jnp.ones(4), jnp.ones(()), "a", (jnp.ones(6),)])
def test_outputs_of_custom_dynamics_are_checked(outputs: Any) -> None:
    custom_dynamics = custom(jnp.ones(3), outputs)
    with pytest.raises(
        ValueError, match=r"^dynamics: outputs\(state\) must be an array"
    ):
        nth.integrate(custom_dynamics, [1.0])


@pytest.mark.parametrize(
    "field", [lambda s: s[:2], lambda s: (s, s), lambda s: s.astype(jnp.float32)]
)
def test_vector_field_of_custom_dynamics_is_checked(field: Any) -> None:
    custom_dynamics = custom(jnp.ones(3), jnp.ones(6), field=field)
    with pytest.raises(ValueError, match=r"^dynamics: vector_field\(t, state, args\)"):
        nth.integrate(custom_dynamics, [1.0])


@pytest.mark.parametrize("norm", [lambda s: s, lambda s: 1.0, lambda s: (s, s)])
def test_error_norm_of_custom_dynamics_is_checked(norm: Any) -> None:
    custom_dynamics = custom(jnp.ones(3), jnp.ones(6), norm=norm)
    with pytest.raises(ValueError, match=r"^dynamics: error_norm\(scaled\) must be"):
        nth.integrate(custom_dynamics, [1.0])


@pytest.mark.parametrize("name", DYNAMICS)
def test_error_norm_of_another_state_is_refused(name: str) -> None:
    for scaled in (None, 1.0, (STATES["dense-3"],)):
        with pytest.raises(ValueError, match=r"^scaled"):
            DYNAMICS[name].error_norm(scaled)


def test_series_states_without_steps_are_refused() -> None:
    state = type(STATES["matrix-free-2"])(None, None)
    with pytest.raises(ValueError, match=r"^state.steps must be a tuple; got None"):
        DYNAMICS["matrix-free-2"].outputs(state)
