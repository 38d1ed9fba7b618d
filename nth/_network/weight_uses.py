"""Parameters that a network uses once, in an operation linear in them.

For z = W x at every position p of an operation let x_p be the inputs and δ_p the
derivative of an output of the network with respect to z_p. The gradient with respect to
W is Σ_p δ_p x_pᵀ, which kernels use in this factored form. A parameter that is used
twice, or in any other way, has no `WeightUse`, and its gradient is computed in full.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Float, Int

from .flat_program import Atom, FlatProgram, Step

# Operations that permute or negate the entries of their operand.
_VIEWS = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "copy", "neg", "rev"}
)
# Maximum entries of a convolution's window for which patches are formed by slices.
_LARGEST_WINDOW = 1024


class WeightUse(NamedTuple):
    """The single use of one parameter.

    `data` maps the value with number `operand` to x, of shape `(groups, positions,
    fan_in)`, or to the indices of the rows looked up, of shape `(positions,)`, with
    `fan_in` for no row. `deltas` maps the derivative with respect to the operation's
    output, with number `output`, to δ of shape `(groups, positions, fan_out)`. Groups
    have separate weights.
    """

    leaf: int
    operand: Atom
    output: int
    data: Callable[[Array], Array]
    deltas: Callable[[Array], Array]
    sizes: tuple[int, int, int, int]
    """Groups, positions, fan_in, fan_out."""
    is_lookup: bool
    factors: tuple[Atom, ...]
    """Scalar constants by which the parameter is multiplied before its use."""


class _Weight(NamedTuple):
    """A value that is a parameter up to the order of its entries, signs and factors."""

    leaf: int
    factors: tuple[Atom, ...]


def weight_uses(program: FlatProgram, n_leaves: int) -> list[WeightUse]:
    """The uses of known form of the first `n_leaves` inputs of a program."""
    consumers = Counter(
        atom
        for atoms in [*(step.inputs for step in program.steps), program.outputs]
        for atom in atoms
        if not isinstance(atom, Literal)
    )
    weights = {program.inputs[i]: _Weight(i, ()) for i in range(n_leaves)}
    depends = set(program.inputs)
    uses = []
    for step in program.steps:
        varies = [_is_in(atom, depends) for atom in step.inputs]
        if any(varies):
            depends.update(step.outputs)
        held = [i for i, atom in enumerate(step.inputs) if _is_in(atom, weights)]
        if len(held) != 1:
            continue
        number = step.inputs[held[0]]
        assert not isinstance(number, Literal)
        if consumers[number] != 1:
            continue
        weight = weights[number]
        use = _use(program, step, held[0], weight)
        if use is not None:
            uses.append(use)
        elif (view := _view(program, step, held[0], weight, varies)) is not None:
            weights[step.outputs[0]] = view
    return uses


def _is_in(atom: Atom, numbers: Any) -> bool:
    return not isinstance(atom, Literal) and atom in numbers


def _view(
    program: FlatProgram, step: Step, position: int, weight: _Weight, varies: list[bool]
) -> _Weight | None:
    """`weight` after a step that permutes its entries or multiplies by a constant."""
    number, output = step.inputs[position], step.outputs[0]
    same_size = math.prod(program.shape(number)) == math.prod(program.shape(output))
    if not same_size or program.dtype(number) != program.dtype(output):
        return None
    if step.name in _VIEWS or step.name in ("broadcast_in_dim", "convert_element_type"):
        return weight
    if step.name == "mul":
        other = step.inputs[1 - position]
        if math.prod(program.shape(other)) == 1 and not varies[1 - position]:
            return weight._replace(factors=(*weight.factors, other))
    return None


def _use(
    program: FlatProgram, step: Step, position: int, weight: _Weight
) -> WeightUse | None:
    kinds = {
        "dot_general": _of_product,
        "conv_general_dilated": _of_convolution,
        "gather": _of_lookup,
    }
    make = kinds.get(step.name)
    dtypes = {program.dtype(step.outputs[0]), program.dtype(step.inputs[position])}
    if make is None or len(dtypes) > 1:
        return None
    return make(program, step, position, weight)


def _of_product(
    program: FlatProgram, step: Step, position: int, weight: _Weight
) -> WeightUse | None:
    contracted, batch = step.params["dimension_numbers"]
    other = 1 - position
    if program.dtype(step.inputs[other]) != program.dtype(step.outputs[0]):
        return None
    shape = program.shape(step.inputs[other])
    free = [d for d in range(len(shape)) if d not in contracted[other] + batch[other]]
    order = (*batch[other], *free, *contracted[other])
    groups, positions, fan_in = (
        math.prod(shape[d] for d in dims)
        for dims in (batch[other], free, contracted[other])
    )
    size = math.prod(program.shape(step.inputs[position]))
    if size == 0:
        return None
    fan_out = size // (groups * fan_in)

    def data(x: Array) -> Float[Array, "groups positions fan_in"]:
        return jnp.transpose(x, order).reshape(groups, positions, fan_in)

    def deltas(cotangent: Array) -> Float[Array, "groups positions fan_out"]:
        if position == 1:
            return cotangent.reshape(groups, positions, fan_out)
        cotangent = cotangent.reshape(groups, fan_out, positions)
        return jnp.swapaxes(cotangent, 1, 2)

    sizes = (groups, positions, fan_in, fan_out)
    at = (weight.leaf, step.inputs[other], step.outputs[0])
    return WeightUse(*at, data, deltas, sizes, False, weight.factors)


def _of_convolution(
    program: FlatProgram, step: Step, position: int, weight: _Weight
) -> WeightUse | None:
    params = step.params
    dims = params["dimension_numbers"]
    kernel = program.shape(step.inputs[1])
    window = [kernel[d] for d in dims.rhs_spec[2:]]
    if position != 1 or params["batch_group_count"] != 1 or 0 in kernel:
        return None
    if math.prod(window) > _LARGEST_WINDOW:
        return None
    groups = params["feature_group_count"]
    shape = program.shape(step.outputs[0])
    batch, channels, *space = (shape[d] for d in dims.out_spec)
    positions, fan_out = batch * math.prod(space), channels // groups
    fan_in = math.prod(kernel) // channels

    def data(x: Array) -> Float[Array, "groups positions fan_in"]:
        patches = _patches(jnp.transpose(x, dims.lhs_spec), window, space, params)
        patches = patches.reshape(batch, groups, fan_in, -1)
        return jnp.transpose(patches, (1, 0, 3, 2)).reshape(groups, positions, fan_in)

    def deltas(cotangent: Array) -> Float[Array, "groups positions fan_out"]:
        cotangent = jnp.transpose(cotangent, dims.out_spec)
        cotangent = cotangent.reshape(batch, groups, fan_out, -1)
        cotangent = jnp.transpose(cotangent, (1, 0, 3, 2))
        return cotangent.reshape(groups, positions, fan_out)

    sizes = (groups, positions, fan_in, fan_out)
    at = (weight.leaf, step.inputs[0], step.outputs[0])
    return WeightUse(*at, data, deltas, sizes, False, weight.factors)


def _patches(
    x: Float[Array, "batch channels ..."],
    window: list[int],
    space: list[int],
    params: dict[str, Any],
) -> Float[Array, "batch channels window ..."]:
    """The entries of `x` in the window of each output position of a convolution."""
    interior = [dilation - 1 for dilation in params["lhs_dilation"]]
    edges = [(*pad, i) for pad, i in zip(params["padding"], interior, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])
    strides = params["window_strides"]
    extent = [(size - 1) * s + 1 for size, s in zip(space, strides, strict=True)]
    parts = []
    for offset in np.ndindex(*window):
        start = [i * d for i, d in zip(offset, params["rhs_dilation"], strict=True)]
        limit = [s + e for s, e in zip(start, extent, strict=True)]
        whole = x.shape[:2]
        part = jax.lax.slice(x, (0, 0, *start), (*whole, *limit), (1, 1, *strides))
        parts.append(part)
    return jnp.stack(parts, axis=2)


def _of_lookup(
    program: FlatProgram, step: Step, position: int, weight: _Weight
) -> WeightUse | None:
    dims, mode = step.params["dimension_numbers"], step.params["mode"]
    table, output = (program.shape(a) for a in (step.inputs[0], step.outputs[0]))
    rows_of_table = (
        position == 0
        and dims.collapsed_slice_dims == (0,)
        and dims.start_index_map == (0,)
        and not dims.operand_batching_dims
        and tuple(step.params["slice_sizes"]) == (1, *table[1:])
    )
    if not rows_of_table:
        return None
    fan_in, fan_out = table[0], math.prod(table[1:])
    positions = math.prod(output) // max(1, fan_out)

    def data(indices: Array) -> Int[Array, " positions"]:
        rows = indices.reshape(positions)
        if mode == jax.lax.GatherScatterMode.CLIP:
            return jnp.clip(rows, 0, fan_in - 1)
        inside = (rows >= 0) & (rows < fan_in)
        return jnp.where(inside, rows, fan_in)

    def deltas(cotangent: Array) -> Float[Array, "1 positions fan_out"]:
        last = range(cotangent.ndim - len(dims.offset_dims), cotangent.ndim)
        moved = jnp.moveaxis(cotangent, dims.offset_dims, tuple(last))
        return moved.reshape(1, positions, fan_out)

    sizes = (1, positions, fan_in, fan_out)
    at = (weight.leaf, step.inputs[1], step.outputs[0])
    return WeightUse(*at, data, deltas, sizes, True, weight.factors)
