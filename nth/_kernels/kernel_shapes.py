"""The shapes of kernels, and the pairs of outputs that they say."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .._internal.archive import ArraySpec
from .._problem.inputs import count
from .evaluation import Points
from .gradient_products import PAIRINGS, Pairing

# The shapes of kernels from the second on, as messages give them.
SECOND = {
    "full": "(m, *out, n, *out) and so on",
    "diagonal": "(m, n, *out)",
    "trace": "(m, n)",
}


def shapes_of(
    tensors: Any, complete: bool, outputs: Pairing
) -> list[tuple[int, ...]] | None:
    """The shapes that `tensors` must have, given those of the first two."""
    arrays = isinstance(tensors, tuple) and all(eqx.is_array(k) for k in tensors)
    if not arrays or not tensors or tensors[0].ndim == 0:
        return None
    if not all(jnp.issubdtype(k.dtype, jnp.floating) and k.size for k in tensors):
        return None
    first = tensors[0].shape
    if outputs != "full":
        n = tensors[1].shape[1] if len(tensors) == 2 and tensors[1].ndim > 1 else 0
        if n == 0 or (complete and n > first[0]):
            return None
        return [first, (first[0], n, *first[1:] * (outputs == "diagonal"))]
    later = tensors[1].shape[len(first) :] if len(tensors) > 1 else first
    if len(later) != len(first) or later[1:] != first[1:]:
        return None
    if complete and later[0] > first[0]:
        return None
    return [first + later * r for r in range(len(tensors))]


def pairing_of(specs: list[ArraySpec], points: Points) -> Pairing | None:
    """The pairs of outputs of which those are K⁽¹⁾ … K⁽ᵖ⁾ at all of the points."""
    output, slot = points.output, (points.n_train, *points.output.shape)
    rows = (count(points.x), *output.shape)
    most = 64  # maximum dimensions of a NumPy array
    shapes = {"full": [rows + slot * r for r in range(min(len(specs), most))]}
    if output.shape:
        pair = (rows[0], slot[0])
        shapes |= {"diagonal": [rows, pair + slot[1:]], "trace": [rows, pair]}
    for outputs in PAIRINGS:
        if specs and specs == [
            ArraySpec(output.dtype.name, shape) for shape in shapes.get(outputs, [])
        ]:
            return outputs
    return None
