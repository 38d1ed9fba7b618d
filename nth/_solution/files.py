"""Saving solutions to files, and loading them."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._internal.archive import ArraySpec
from .._internal.checkpoint import Checkpoint, is_spread, on_host
from .._internal.validation import is_traced
from .results import NAMES, RESULTS, name_of_result
from .solution import Solution

# Fields that are single arrays.
_ARRAYS = (
    *("ts", "train", "test", "loss", "valid_until"),
    *("error_estimate", "error_share"),
)
_TREES = ("state", "saved", "output_errors", "restarts")


def save_solution(solution: Solution, path: str | os.PathLike[str]) -> None:
    """Implementation of [`nth.Solution.save`][]."""
    file = _file(path)
    if is_traced(solution):
        raise ValueError("a solution cannot be saved under jax.jit.")
    codes = np.asarray(jax.tree.leaves(solution.result)[0])
    about = {
        "label": solution.label,
        "method": solution.method,
        "solver": solution.solver,
        "counts": list(solution.counts),
        "results": {int(code): _name(code) for code in np.unique(codes)},
        **{name: _leaf_names(getattr(solution, name)) for name in _TREES},
    }
    words = np.frombuffer(json.dumps(about).encode(), np.uint8)
    arrays = [getattr(solution, name) for name in _ARRAYS]
    trees = [jax.tree.leaves(getattr(solution, name)) for name in _TREES]
    parts = on_host((words, codes, arrays, list(solution.counts.values()), trees))
    if not is_spread(solution) or jax.process_index() == 0:
        file.write(parts)


def load_solution(
    path: str | os.PathLike[str], like: PyTree, saved_like: PyTree
) -> Solution:
    """Implementation of [`nth.Solution.load`][]."""
    file = _file(path)
    leaves = file.read_leaves(lambda specs: len(specs) >= 2 + len(_ARRAYS))
    if leaves is None:
        raise ValueError(f"path: there is no file {file.path}.")
    for leaf in leaves:
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise ValueError(
                f"path: {file.path} holds {leaf.dtype}, which needs "
                'jax.config.update("jax_enable_x64", True).'
            )
    try:
        about, codes = json.loads(leaves[0].tobytes()), leaves[1]
        taken = iter([jnp.asarray(leaf) for leaf in leaves[2:]])
        arrays: dict[str, Any] = {name: next(taken) for name in _ARRAYS}
        counts = {name: next(taken) for name in about["counts"]}
        trees = {name: {key: next(taken) for key in about[name]} for name in _TREES}
        result = _result(_current_codes(codes, about["results"]))
        label, method = str(about["label"]), str(about["method"])
        solver = about["solver"] if about["solver"] is None else str(about["solver"])
    except Exception as error:  # the content of a file can be anything
        raise file.damaged(repr(error)) from None
    return Solution(
        **arrays,
        result=result,
        state=_in_structure(trees["state"], like, "like"),
        counts=counts,
        label=label,
        method=method,
        solver=solver,
        saved=_in_structure(trees["saved"], saved_like, "saved_like"),
        restarts=_in_structure(trees["restarts"], None, ""),
        output_errors=_in_structure(trees["output_errors"], None, ""),
    )


def _file(path: str | os.PathLike[str]) -> Checkpoint:
    return Checkpoint(
        path, "nth.Solution", argument="path", foreign="does not hold a solution"
    )


def _result(codes: Any) -> RESULTS:
    tree = jax.tree.structure(RESULTS.successful)
    return jax.tree.unflatten(tree, [jnp.asarray(codes, np.int32)])


def _name(code: Any) -> str:
    return name_of_result(_result(code))


def _current_codes(codes: np.ndarray, names: dict[str, str]) -> np.ndarray:
    """The codes of these results in this release; other releases may differ."""
    new = {
        int(code): int(jax.tree.leaves(getattr(RESULTS, name))[0])
        for code, name in names.items()
        if name in NAMES
    }
    return np.vectorize(new.__getitem__, otypes=[np.int32])(codes)


def _leaf_names(tree: PyTree) -> list[str]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path) for path, _ in paths]


def _in_structure(arrays: dict[str, Any], like: PyTree, argument: str) -> PyTree:
    """The `arrays`, matched by name, in the structure of `like`."""
    if like is None:
        if not arrays:
            return None
        return arrays[""] if list(arrays) == [""] else tuple(arrays.values())
    leaves, tree = jax.tree.flatten(like)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        raise ValueError(
            f"{argument} must be a pytree of arrays or jax.ShapeDtypeStructs, such "
            f"as dynamics.initial_state(); got {like!r}."
        )
    expected = dict(zip(_leaf_names(like), map(ArraySpec.of, leaves), strict=True))
    saved = {name: ArraySpec.of(array) for name, array in arrays.items()}
    if list(expected.items()) != list(saved.items()):
        raise ValueError(
            f"{argument} does not match the saved arrays: give the structure of the "
            "saved solve, such as dynamics.initial_state(), or leave it out. "
            f"{_first_difference(expected, saved)}"
        )
    return jax.tree.unflatten(tree, arrays.values())


def _first_difference(
    expected: dict[str, ArraySpec], saved: dict[str, ArraySpec]
) -> str:
    for name in [*saved, *expected]:
        if saved.get(name) != expected.get(name):
            return (
                f"For {name or 'the array'} the file has {_words(saved.get(name))} and "
                f"the structure has {_words(expected.get(name))}."
            )
    return "Their order differs."


def _words(spec: ArraySpec | None) -> str:
    return "nothing" if spec is None else f"shape {spec.shape} and dtype {spec.dtype}"
