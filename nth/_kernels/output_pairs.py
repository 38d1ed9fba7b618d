"""K⁽²⁾ of each output with itself, or the mean of these, with no full tensor.

Gradients of a few outputs at a time, at as many points as fit: for C outputs the time
and the memory are a C-th of those of the full tensor. A network that ends in fewer
features than outputs has the gradients of these computed instead.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .assembly import form
from .blocks import filled_in_blocks
from .evaluation import Points
from .factored_gradients import GradientFunction
from .feature_pairs import cut_of, features_at, head_at, slopes, through_features
from .gradient_products import Pairing
from .jacobian import jacobian_block

# Bytes that the gradients held at once may take, unless `block_size` is given.
_BLOCK_BYTES = 2**28


class _Plan(eqx.Module):
    """How many outputs, columns and rows are computed at once."""

    pairing: Pairing = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)


def _plan(points: Points, pairing: Pairing, block_size: int | None) -> _Plan:
    """Blocks within `_BLOCK_BYTES`: few outputs at many points, since every block of
    columns computes the gradients of all rows again."""
    n, n_outputs = points.n_train, points.output.size
    gradients = GradientFunction(points, n, pairing)
    none, each = gradients.bytes_per_point(points, 1), 0
    if n_outputs > 1:
        each = gradients.bytes_per_point(points, 2) - none
        none -= each
    outputs = max(1, (3 * _BLOCK_BYTES // (4 * n) - none) // max(1, each))
    outputs = min(n_outputs, outputs, block_size or n_outputs)
    outputs = -(-n_outputs // -(-n_outputs // outputs))  # of equal size
    per_point = none + outputs * each
    columns = max(1, 3 * _BLOCK_BYTES // (4 * per_point))
    if block_size:
        columns = max(1, block_size // outputs)
    columns = min(n, columns)
    pairs = columns * gradients.bytes_per_pair(points, outputs)
    rows = max(1, _BLOCK_BYTES // (4 * (per_point + pairs)))
    return _Plan(pairing, outputs, columns, rows)


def output_pairs(
    points: Points, pairing: Pairing, block_size: int | None, progress: bool
) -> Float[Array, "rows train *outputs"]:
    """The diagonal of K⁽²⁾ over pairs of outputs, or its mean."""
    if block_size is None and cut_of(points) is not None:
        return _by_features(points, pairing)
    return _by_outputs(points, pairing, block_size, progress)


@eqx.filter_jit
def _by_features(
    points: Points, pairing: Pairing
) -> Float[Array, "rows train *outputs"]:
    cut = cut_of(points)
    assert cut is not None
    features = features_at(points, cut)
    head = head_at(points, cut, features)
    columns, extra = slopes(head)
    rows = jnp.concatenate([columns, extra]) if points.with_train else extra
    ntk = form(features, 2, None, progress=False)[1]
    trace = pairing == "trace"
    below = through_features(ntk, rows, columns, trace)
    if trace:
        below = below / points.output.size
    else:
        below = below.reshape(*below.shape[:2], *points.output.shape)
    above = _by_outputs(head, pairing, None, progress=False)
    return below + above.reshape(below.shape)


def _by_outputs(
    points: Points, pairing: Pairing, block_size: int | None, progress: bool
) -> Float[Array, "rows train *outputs"]:
    plan = _plan(points, pairing, block_size)
    n, n_outputs, shape = points.n_train, points.output.size, points.output.shape
    padded = -(-n_outputs // plan.outputs) * plan.outputs
    kept = (padded,) if pairing == "diagonal" else ()
    out = jnp.zeros((points.n_rows // n_outputs, n, *kept), points.output.dtype)
    blocks = [
        (output, start)
        for output in range(0, n_outputs, plan.outputs)
        for start in range(0, n, plan.columns)
    ]
    out = filled_in_blocks(_add_block, (points, plan), blocks, out, "K(2)", progress)
    if pairing == "trace":
        return out / n_outputs
    return out[:, :, :n_outputs].reshape(*out.shape[:2], *shape)


def _add_block(
    inputs: tuple[Points, _Plan], corner: Int[Array, " 2"], out: Array
) -> Array:
    points, plan = inputs
    output, start = corner
    n, n_outputs = points.n_train, points.output.size
    gradients = GradientFunction(points, n, plan.pairing)
    # A row of zeros for each output beyond the last.
    numbers = output + jnp.arange(plan.outputs)
    units = numbers[:, None] == jnp.arange(n_outputs)[None]
    at = partial(gradients.over, points.params, units=units.astype(out.dtype))
    first = jnp.minimum(start, n - plan.columns)  # the last block overlaps
    block = jacobian_block(points, gradients, at, first, plan.columns, plan.rows)
    if plan.pairing == "diagonal":
        return jax.lax.dynamic_update_slice(out, block, (0, first, output))
    done = first + jnp.arange(plan.columns) < start
    block = jnp.where(done[None], 0, block)
    before = jax.lax.dynamic_slice_in_dim(out, first, plan.columns, axis=1)
    return jax.lax.dynamic_update_slice(out, before + block, (0, first))
