"""K⁽²⁾, K⁽³⁾ and K⁽⁴⁾ of a chain of layers, by products of matrices.

For a layer z = W x + b let x_a be its inputs for slot a, and λ_a = ∂f_a/∂z. Then
∂f_a/∂W = λ_a x_aᵀ, and with P = λ_a·λ_b and Q = s_W x_a·x_b + s_b (rates s),

    K⁽²⁾[a, b] = Σ_layers P[a, b] Q[a, b].

Let ẋ_ac, λ̇_ac be the derivatives of x_a and λ_a along ∇f_c: one forward and one
backward pass for each pair of slots, in which ∇f_c enters as two vectors. With
v_ac = H_a ∇f_c, the derivative of ∇f_a along ∇f_c, whose part for each layer has rank
two,

    K⁽³⁾[a, b, c]    = v_ac·∇f_b + ∇f_a·v_bc,
    K⁽⁴⁾[a, b, c, d] = v_ac·v_bd + v_ad·v_bc + v_ab·v_cd + v_ba·v_cd
                       + T_a[b, c, d] + T_b[a, c, d],

where T_a is the third derivative of f_a along three such gradients. By the 2n+1 theorem
for stationary functionals it needs no second derivatives of x and λ, so K⁽⁴⁾ needs no
passes beyond those of K⁽³⁾, only products of their results.

With n slots and layers of width w: 4 n² w² operations per layer for the passes, 8 n³ w
for K⁽³⁾ and 12 n⁴ w for K⁽⁴⁾ with two hidden layers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._network.dense_layers import Layer
from .mlp_derivatives import Change, Changes, Slots, at_slots, changes, pairs


class Chain(eqx.Module):
    """A chain of layers at the points of a problem, with the derivatives for K⁽⁴⁾.

    The first slot of a kernel runs over the training slots, if `with_train`, and over
    `extra` ones, along whose gradients nothing is trained.
    """

    layers: tuple[Layer, ...]
    train: Slots
    extra: Slots
    with_train: bool = eqx.field(static=True)
    changes: tuple[Changes, Changes, Changes] | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of training and extra slots."""
        return len(self.train[0].inputs), len(self.extra[0].inputs)

    def with_changes(self) -> "Chain":
        """The chain with ẋ and λ̇ of training and extra slots, and of training slots
        along extra ones: 2 n (n + 2q) w numbers per layer."""
        pairs = (
            (self.train, self.train),
            (self.extra, self.train),
            (self.train, self.extra),
        )
        moved = tuple(changes(self.layers, *pair) for pair in pairs)
        return eqx.tree_at(
            lambda chain: chain.changes, self, moved, is_leaf=lambda leaf: leaf is None
        )


def chain_at(
    layers: tuple[Layer, ...],
    x_train: Shaped[Array, "n *in"],
    x_extra: Shaped[Array, "e *in"],
    size: int,
    with_train: bool,
) -> Chain:
    """A chain at training and extra points, with `size` outputs per point."""
    train, extra = (at_slots(layers, x, size) for x in (x_train, x_extra))
    return Chain(layers, train, extra, with_train)


def _onto_gradients(
    layers: Sequence[Layer], rows: Slots, changes: Changes, others: Slots
) -> Float[Array, "rows slots others"]:
    """v_ac·∇f_b for a in `rows`, c the direction of `changes`, b in `others`."""
    total = jnp.zeros((), layers[0].weight.dtype)
    for layer, row, change, other in zip(layers, rows, changes, others, strict=True):
        p, q = pairs(layer, row, other)
        if change.deltas is not None:
            total = total + change.deltas @ other.deltas.T * q[:, None]
        if change.inputs is not None:
            p = layer.weight_rate * p
            total = total + change.inputs @ other.inputs.T * p[:, None]
    return total


def between_changes(
    layers: Sequence[Layer], rows: Slots, first: Changes, others: Slots, second: Changes
) -> Float[Array, "rows slots others more"]:
    """v_xy·v_zd, with x in `rows` along y and z in `others` along d."""
    total = jnp.zeros((), layers[0].weight.dtype)
    for layer, x, xy, z, zd in zip(layers, rows, first, others, second, strict=True):
        p, q = (pair[:, None, :, None] for pair in pairs(layer, x, z))
        rate = layer.weight_rate
        if xy.deltas is not None:
            total = total + _gram(xy.deltas, zd.deltas) * q
        if xy.inputs is not None:
            total = total + _gram(xy.inputs, zd.inputs) * (rate * p)
        if xy.deltas is not None and xy.inputs is not None:
            mixed = (xy.deltas @ z.deltas.T)[..., None] * _across(x.inputs, zd.inputs)
            mixed += (xy.inputs @ z.inputs.T)[..., None] * _across(x.deltas, zd.deltas)
            total = total + rate * mixed
    return total


def _gram(xy: Float[Array, "x y w"], zd: Float[Array, "z d w"]) -> Array:
    return jnp.tensordot(xy, zd, axes=(2, 2))


def _across(x: Float[Array, "x w"], zd: Float[Array, "z d w"]) -> Array:
    return jnp.tensordot(x, zd, axes=(1, 2))[:, None]


class _Along(NamedTuple):
    """Slots, and the derivatives of some rows along their gradients."""

    slots: Slots
    changes: Changes


def _third_derivatives(
    layers: Sequence[Layer], b: _Along, c: _Along, d: _Along
) -> Float[Array, "rows b c d"]:
    """T_a[b, c, d]: the third-order terms of Σ λ·(W σ(z) − z) in first derivatives."""
    total = jnp.zeros((), layers[0].weight.dtype)
    for i, layer in enumerate(layers):
        at = [each.slots[i] for each in (b, c, d)]
        change = [each.changes[i] for each in (b, c, d)]
        if change[0].z is not None:
            total = total + _of_neurons(*change, symmetric=b is c)
        if change[0].inputs is None or change[0].deltas is None:
            continue
        for middle in range(3):  # λ̇·(Ẇ ẋ), with Ẇ along b, c and d
            ends = [k for k in range(3) if k != middle]
            outer = [change[k].deltas @ at[middle].deltas.T for k in ends]
            inner = [change[k].inputs @ at[middle].inputs.T for k in ends]
            outer, inner = (
                [_placed(part, k, middle) for part, k in zip(parts, ends, strict=True)]
                for parts in (outer, inner)
            )
            pair = outer[0] * inner[1] + outer[1] * inner[0]
            total = total + layer.weight_rate * pair
    return total


def _placed(part: Float[Array, "rows i j"], i: int, j: int) -> Float[Array, "rows ..."]:
    """`part` with its later axes in the i-th and j-th places of three."""
    part = part if i < j else jnp.swapaxes(part, 1, 2)
    return jnp.expand_dims(part, 1 + ({0, 1, 2} - {i, j}).pop())


def _of_neurons(
    b: Change, c: Change, d: Change, symmetric: bool
) -> Float[Array, "rows b c d"]:
    """Over neurons, Σ σ‴ B ż_b ż_c ż_d + σ″ (Ḃ_b ż_c ż_d + Ḃ_c ż_b ż_d + Ḃ_d ż_b ż_c)

    = Σ e_b ż_c ż_d + e_c ż_b ż_d + e_d ż_b ż_c with e = `third_order`: a half, and the
    same with b and c exchanged.
    """

    def half(first: Change, second: Change) -> Float[Array, "rows first second d"]:
        def of_row(row: tuple[Change, Change, Change]) -> Array:
            b, c, d = row
            left = b.third_order[:, None] * d.z[None]
            left += 0.5 * b.z[:, None] * d.third_order[None]
            return jnp.einsum("bdw,cw->bcd", left, c.z)

        # Row by row, so that the intermediate arrays stay in the cache.
        return jax.lax.map(of_row, (first, second, d))

    bc = half(b, c)
    if symmetric:
        return bc + jnp.swapaxes(bc, 1, 2)
    return bc + jnp.swapaxes(half(c, b), 1, 2)


def slots_from(slots: Any, start: Any, size: int, axis: int) -> Any:
    """`size` slots from `start` on, of arrays that hold all of them along `axis`."""
    take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
    return jax.tree.map(lambda array: take(array, axis=axis), slots)


def second(chain: Chain, start: Any, size: int) -> Float[Array, "rows b"]:
    """`size` columns of K⁽²⁾, from `start` on."""
    b = slots_from(chain.train, start, size, 0)
    rows = [chain.train] * chain.with_train + [chain.extra]
    kernels = []
    for slots in rows:
        products = [pairs(*each) for each in zip(chain.layers, slots, b, strict=True)]
        kernels.append(sum(p * q for p, q in products))
    return jnp.concatenate(kernels)


def third(chain: Chain, start: Any, size: int) -> Float[Array, "rows b c"]:
    """`size` columns of K⁽³⁾: v_ac·∇f_b + ∇f_a·v_bc."""
    layers, train, extra = chain.layers, chain.train, chain.extra
    along = slots_from(train, start, size, 0)
    moved = changes(layers, train, along)
    parts = []
    if chain.with_train:
        acb = _onto_gradients(layers, train, moved, train)
        parts.append(third_of(acb, acb))
    if chain.counts[1]:
        acb = _onto_gradients(layers, extra, changes(layers, extra, along), train)
        bca = _onto_gradients(layers, train, moved, extra)
        parts.append(third_of(acb, bca))
    return jnp.concatenate(parts)


def third_of(acb: Array, bca: Array) -> Float[Array, "a b c"]:
    """K⁽³⁾ from v_ac·∇f_b and v_bc·∇f_a; the names give the order of their slots."""
    return jnp.swapaxes(acb, 1, 2) + jnp.moveaxis(bca, 2, 0)


def fourth_of(
    v: Array, v_bacd: Array, v_bcad: Array, t: Array, t_bacd: Array
) -> Float[Array, "a b c d"]:
    """K⁽⁴⁾ from v_xy·v_zd and T_x[y, z, d]; x, y, z are a, b, c or as in the name."""
    return (
        jnp.swapaxes(v, 1, 2)
        + v
        + jnp.swapaxes(v_bacd, 0, 1)
        + jnp.moveaxis(v_bcad, 2, 0)
        + t
        + jnp.swapaxes(t_bacd, 0, 1)
    )


def fourth(chain: Chain, start: Any, size: int) -> Float[Array, "rows b c d"]:
    """`size` columns of K⁽⁴⁾, of a chain `with_changes`."""
    parts = []
    if chain.with_train:
        parts.append(_fourth_of_train(chain, start, size))
    if chain.counts[1]:
        parts.append(fourth_of_extra(chain, start, size))
    return jnp.concatenate(parts)


def _fourth_of_train(chain: Chain, start: Any, size: int) -> Float[Array, "a b c d"]:
    layers, train = chain.layers, chain.train
    assert chain.changes is not None
    tt = chain.changes[0]
    d, tt_d = slots_from(train, start, size, 0), slots_from(tt, start, size, 1)
    v = between_changes(layers, train, tt, train, tt_d)
    all_of_train = _Along(train, tt)
    t = _third_derivatives(layers, all_of_train, all_of_train, _Along(d, tt_d))
    return fourth_of(v, v, v, t, t)


def fourth_of_extra(chain: Chain, start: Any, size: int) -> Float[Array, "extra b c d"]:
    """`size` columns of K⁽⁴⁾ at extra slots, of a chain `with_changes`."""
    layers, train, extra = chain.layers, chain.train, chain.extra
    assert chain.changes is not None
    tt, et, te = chain.changes
    d = slots_from(train, start, size, 0)
    tt_d, et_d = (slots_from(moved, start, size, 1) for moved in (tt, et))
    v = between_changes(layers, extra, et, train, tt_d)
    v_ba = between_changes(layers, train, te, train, tt_d)
    v_bca = between_changes(layers, train, tt, extra, et_d)
    along = _Along(train, et)
    t = _third_derivatives(layers, along, along, _Along(d, et_d))
    t_ba = _third_derivatives(
        layers, _Along(extra, te), _Along(train, tt), _Along(d, tt_d)
    )
    return fourth_of(v, v_ba, v_bca, t, t_ba)
