"""Pickles, deep copies, other processes, and files of solutions."""

import copy
import json
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
from conftest import make_network, make_problem, tampered

import nth
from nth._internal.checkpoint import fingerprint
from nth._network.activations import ACTIVATIONS
from nth._solution.results import NAMES, RESULTS

TS: Any = [0.0, 0.5, 1.0]
LOSSES = (
    nth.SquaredError(),
    nth.SoftmaxCrossEntropy(),
    nth.LogisticLoss(),
    nth.CustomLoss(jnp.subtract),
)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIES: dict[str, Callable[[Any], Any]] = {"pickle": pickled, "copy": copy.deepcopy}


@pytest.fixture(scope="module")
def solution() -> nth.Solution:
    """A solution of the matrix-free hierarchy, whose state contains networks."""
    dynamics = nth.MatrixFreeHierarchy(make_network(3, 1), make_problem(), order=2)
    return nth.integrate(
        dynamics, TS, save_fn=lambda t, state, args: dynamics.outputs(state)
    )


@pytest.fixture(scope="module")
def results(solution: nth.Solution) -> dict[str, Any]:
    """One object of each public class of results."""
    network, problem = make_network(3, 1), make_problem()
    kernels = nth.kernels(network, problem, order=4)
    infinite = nth.infinite.kernels(problem.x, depth=1)
    comparison = nth.Comparison(
        solution, {2: solution}, problem, jnp.ones(2), {"other": solution}
    )
    return {
        "Problem": problem,
        "Kernels": kernels,
        "Solution": solution,
        "Comparison": comparison,
        "Spectrum": nth.spectrum(kernels),
        "infinite": infinite,
        "Perturbation": nth.perturbative(kernels, problem, TS),
        "dense": nth.DenseHierarchy(kernels, problem, order=3),
        "matrix-free": nth.MatrixFreeHierarchy(network, problem, order=2),
        "flow": nth.GradientFlow(network, problem),
        "Trajectory": nth.closed_form(kernels, problem, TS),
        "Sweep": nth.scaling.Sweep((2, 3), np.ones((2, 3))),
        "Exponent": nth.scaling.fit([1, 2, 4], [1.0, 2.0, 4.0]),
    }


def networks() -> dict[str, nth.MLP]:
    return {name: make_network(3, 1, activation=name) for name in ACTIVATIONS}


def assert_equal(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    leaves, tree = jax.tree.flatten(actual)
    expected_leaves, expected_tree = jax.tree.flatten(expected)
    assert tree == expected_tree
    for a, b in zip(leaves, expected_leaves, strict=True):
        if eqx.is_array(a):
            assert type(a) is type(b)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", COPIES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_networks_are_copied(name: str, method: str) -> None:
    network = networks()[name]
    same = COPIES[method](network)
    assert_equal(network, same)
    assert same.activation == network.activation
    assert hash(same.activation) == hash(network.activation)
    assert fingerprint(same) == fingerprint(network)


@pytest.mark.parametrize("method", COPIES)
def test_results_are_copied(method: str, results: dict[str, Any]) -> None:
    for value in results.values():
        assert_equal(value, COPIES[method](value))
    same = COPIES[method](results["Solution"])
    assert same.result == RESULTS.successful
    assert str(COPIES[method](results["Comparison"])) == str(results["Comparison"])


@pytest.mark.parametrize("loss", LOSSES[:3])
def test_problems_are_copied(loss: nth.AbstractLoss) -> None:
    outputs = 2 if isinstance(loss, nth.SoftmaxCrossEntropy) else None
    problem = make_problem(outputs=outputs, loss=loss)
    for method in COPIES.values():
        assert_equal(problem, method(problem))


def test_copies_share_compiled_functions() -> None:
    traced = []

    @eqx.filter_jit
    def outputs(network: nth.MLP, x: jax.Array) -> jax.Array:
        traced.append(None)
        return network(x)

    for name in ("tanh", "softplus"):
        network = networks()[name]
        for same in (network, pickled(network), copy.deepcopy(network)):
            outputs(same, jnp.ones(3))
    assert len(traced) == 2


def test_functions_with_names_are_replaced_by_named_activations() -> None:
    """A network with `jax.nn.relu` equals one with "relu", and can be pickled."""
    for name, function in (("relu", jax.nn.relu), ("tanh", jnp.tanh)):
        network = make_network(3, 1, activation=function)
        assert network.activation is networks()[name].activation
        assert_equal(network, pickled(network))
    assert make_network(3, 1, activation=jnp.cos).activation is jnp.cos


def test_named_activations_have_the_jaxpr_of_their_functions() -> None:
    for name, function in (("relu", jax.nn.relu), ("erf", jax.scipy.special.erf)):
        named = str(jax.make_jaxpr(ACTIVATIONS[name])(jnp.ones(3)))
        assert named == str(jax.make_jaxpr(function)(jnp.ones(3)))


def in_another_process(values: dict[str, Any]) -> dict[str, Any]:
    """Run in a child process: fingerprints, activations, and the values themselves."""
    fingerprints = {name: fingerprint(value) for name, value in values.items()}
    x = jnp.linspace(-1, 1, 3)
    known = {
        name: np.asarray(value.activation(x))
        for name, value in values.items()
        if isinstance(value, nth.MLP)
    }
    return {"values": values, "fingerprints": fingerprints, "activations": known}


def test_objects_are_equal_in_another_process(results: dict[str, Any]) -> None:
    """A process started by spawn."""
    values = {**results, **networks()}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        answer = pool.submit(in_another_process, values).result(timeout=180)
    x = jnp.linspace(-1, 1, 3)
    for name, value in values.items():
        assert_equal(value, answer["values"][name])
        assert answer["fingerprints"][name] == fingerprint(value), name
    for name, outputs in answer["activations"].items():
        assert answer["values"][name].activation == values[name].activation
        np.testing.assert_array_equal(outputs, values[name].activation(x))


@pytest.mark.parametrize("method", COPIES)
def test_checkpoints_of_a_copy_are_accepted(method: str, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    network, problem = make_network(3, 1, activation="relu"), make_problem()
    solved = nth.gradient_flow(network, problem, TS, checkpoint=file)
    same, same_problem = COPIES[method]((network, problem))
    before = file.read_bytes()
    again = nth.gradient_flow(same, same_problem, TS, checkpoint=file)
    assert file.read_bytes() == before
    assert_equal(solved.train, again.train)


def test_copies_with_jitted_functions_have_one_fingerprint() -> None:
    """A copy of a jitted function is another object, printed without a name."""
    for function in (jax.nn.silu, jax.jit(lambda z: z)):
        network = make_network(3, 1, activation=function)
        assert fingerprint(copy.deepcopy(network)) == fingerprint(network)
    names = [fingerprint(make_network(3, 1, activation=name)) for name in ACTIVATIONS]
    assert len(set(names)) == len(names)


# Files of solutions


def test_solutions_round_trip(solution: nth.Solution, tmp_path: Path) -> None:
    solution.save(tmp_path / "solution.npz")
    state = nth.MatrixFreeHierarchy(
        make_network(3, 1, seed=5), make_problem(), order=2
    ).initial_state()
    for like in (state, jax.eval_shape(lambda: state)):
        again = nth.Solution.load(str(tmp_path / "solution.npz"), like)
        assert_equal(solution, again)
        assert again.stats == solution.stats
    flat = nth.Solution.load(tmp_path / "solution.npz")
    assert_equal(flat.state, tuple(jax.tree.leaves(solution.state)))
    assert_equal(eqx.tree_at(lambda s: s.state, flat, solution.state), solution)


def replaced(solution: nth.Solution, **fields: Any) -> nth.Solution:
    given = {name: getattr(solution, name) for name in vars(solution)}
    return nth.Solution(**{**given, **fields})


@pytest.mark.parametrize("code", range(len(RESULTS)))
def test_every_result_round_trips(
    code: int, solution: nth.Solution, tmp_path: Path
) -> None:
    tree = jax.tree.structure(RESULTS.successful)
    result = jax.tree.unflatten(tree, [jnp.asarray(code, np.int32)])
    replaced(solution, result=result).save(tmp_path / "solution.npz")
    again = nth.Solution.load(tmp_path / "solution.npz")
    assert again.result == result
    assert RESULTS[again.result] == RESULTS[result]


def test_results_are_saved_by_name(solution: nth.Solution, tmp_path: Path) -> None:
    """So that files do not depend on the numbering of a release."""
    assert len(NAMES) == len(RESULTS)
    file = tmp_path / "solution.npz"
    replaced(solution, result=RESULTS.diverged).save(file)
    with np.load(file) as stored:
        about = json.loads(stored["leaf_0"].tobytes())
    about["results"] = {"77": "diverged"}
    words = np.frombuffer(json.dumps(about).encode(), np.uint8)
    tampered(file, leaf_0=words, leaf_1=np.asarray(77, np.int32))
    assert nth.Solution.load(file).result == RESULTS.diverged
    about["results"] = {"77": "unknown"}
    words = np.frombuffer(json.dumps(about).encode(), np.uint8)
    tampered(file, leaf_0=words)
    with pytest.raises(ValueError, match="is damaged"):
        nth.Solution.load(file)


def test_states_and_saved_values_of_any_structure_round_trip(
    solution: nth.Solution, tmp_path: Path
) -> None:
    file = tmp_path / "solution.npz"
    one, two = jnp.arange(3.0), jnp.ones((3, 2), ml_dtypes.bfloat16)
    replaced(solution, state=one, saved={"b": [one, None], "a": two}).save(file)
    again = nth.Solution.load(file, saved_like={"b": [one, None], "a": two})
    assert_equal(again.state, one)
    assert_equal(again.saved, {"b": [one, None], "a": two})
    flat = nth.Solution.load(file)
    assert_equal(flat.saved, (two, one))
    replaced(solution, state=(), saved=None).save(file)
    assert nth.Solution.load(file).saved is None


def test_stacked_solutions_round_trip(
    solution: nth.Solution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacked, as by `jax.vmap`, with one axis more than annotated."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), solution)
    stacked.save(tmp_path / "solution.npz")
    again = nth.Solution.load(tmp_path / "solution.npz", solution_state(stacked))
    assert_equal(stacked, again)


def solution_state(solution: nth.Solution) -> Any:
    return jax.eval_shape(lambda: solution.state)


def test_structures_that_do_not_match_are_refused(
    solution: nth.Solution, tmp_path: Path
) -> None:
    file = tmp_path / "solution.npz"
    one, two = jnp.zeros(3), jnp.zeros((2, 3))
    replaced(solution, state={"a": one, "b": two}).save(file)
    shape = r"shape \(2, 3\) and dtype float64"
    wrong = {
        rf"For \['b'\] the file has {shape} and the structure has nothing": {"a": one},
        rf"For \['c'\] the file has nothing and the structure has {shape}": {
            "a": one,
            "b": two,
            "c": two,
        },
        r"and the structure has shape \(3,\) and dtype float64": {"a": one, "b": one},
        r"and the structure has shape \(2, 3\) and dtype bool": {
            "a": one,
            "b": two > 0,
        },
    }
    for message, like in wrong.items():
        with pytest.raises(
            ValueError, match=f"like does not match the saved arrays.*{message}"
        ):
            nth.Solution.load(file, like)
    for like in ("abc", 3, [1.0, one]):
        with pytest.raises(ValueError, match="like must be a pytree of arrays"):
            nth.Solution.load(file, like)
    with pytest.raises(ValueError, match="saved_like does not match the saved arrays"):
        nth.Solution.load(file, saved_like=(jnp.zeros(3),))


def test_files_without_a_solution_are_refused(
    solution: nth.Solution, tmp_path: Path
) -> None:
    file = tmp_path / "solution.npz"
    with pytest.raises(ValueError, match=r"path: there is no file .*solution\.npz"):
        nth.Solution.load(file)
    network, problem = make_network(3, 1), make_problem()
    nth.kernels(network, problem, order=2).save(file, network, problem)
    with pytest.raises(ValueError, match=r"path: .*does not hold a solution"):
        nth.Solution.load(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"path: .*is damaged"):
        nth.Solution.load(file)
    solution.save(file)
    for words in (b"{}", b"no JSON", b'{"label": []}'):
        tampered(file, leaf_0=np.frombuffer(words, np.uint8))
        with pytest.raises(ValueError, match=r"path: .*is damaged"):
            nth.Solution.load(file)


def test_float64_solutions_need_x64(solution: nth.Solution, tmp_path: Path) -> None:
    solution.save(tmp_path / "solution.npz")
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"holds float64, which needs .*jax_enable_x64"),
    ):
        nth.Solution.load(tmp_path / "solution.npz")


def test_saving_and_loading_are_refused_under_jit(
    solution: nth.Solution, tmp_path: Path
) -> None:
    file = tmp_path / "solution.npz"
    with pytest.raises(ValueError, match=r"cannot be saved under jax\.jit"):
        eqx.filter_jit(lambda solution: solution.save(file))(solution)
    network, problem = make_network(3, 1), make_problem()
    kernels = nth.Kernels((jnp.zeros(6), jnp.zeros((6, 4))))
    with pytest.raises(ValueError, match=r"cannot be saved under jax\.jit"):
        eqx.filter_jit(lambda kernels: kernels.save(file, network, problem))(kernels)
    with pytest.raises(ValueError, match=r"cannot be loaded under jax\.jit"):
        eqx.filter_jit(lambda net: nth.Kernels.load(file, net, problem))(network)
    assert not file.exists()
