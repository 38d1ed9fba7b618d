"""Recursion over layers for the O(1/width) statistics of a network at initialization.

Roberts, Yaida & Hanin (2022), chapters 4, 8 and 11, in the notation of this library and
for any weight and bias speeds. A layer has the outputs z_i(a) of neuron i at point a,
their NTK H_ij(ab) = ⟨∇z_i(a), ∇z_j(b)⟩, and, with the gradients contracted likewise,

    dH_ijk(a; bc) = ∇∇z_i(a) · ∇z_j(b) ∇z_k(c),
    ddI_ijkl(a; bcd) = ∇∇∇z_i(a) · ∇z_j(b) ∇z_k(c) ∇z_l(d),
    ddII_ijkl(ab; cd) = ∇∇z_i(a) · ∇∇z_j(b) · ∇z_k(c) ∇z_l(d),

where ddII contracts the two Hessians over one index, and the Hessian of a with c, that
of b with d. Their cumulants to O(1/width) are tensors over four points, one for each
way to pair the neurons.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp

from .._custom_types import Scalar
from ._four_points import (
    Matrix,
    Pair,
    Tensor,
    first_pair,
    move,
    move_second,
    outer,
    repeated,
    second_pair,
    slots,
    swapped,
    vary,
    vary_matrix,
    vary_second,
)
from ._joint_moments import JointMoments


class Rates(NamedTuple):
    """The variances and speeds of one layer: Σ = weight·S + bias for second moments S
    of its inputs, and weight_rate·S + bias_rate is its own part of the NTK."""

    weight: Scalar
    bias: Scalar
    weight_rate: Scalar
    bias_rate: Scalar


class Statistics(NamedTuple):
    """Statistics of a layer's outputs. All but the first two are O(1/width).

    In each comment the neurons of the tensor's four slots are equal in pairs: those of
    slots 1 and 2, and those of slots 3 and 4.
    """

    covariance: Matrix  # Σ, at infinite width
    ntk: Matrix  # Θ, at infinite width
    covariance_mean: Matrix  # E[z z] − Σ
    ntk_mean: Matrix  # E[H] − Θ
    outputs: Tensor  # V[a, b, c, d]: cumulant of z(a), z(b), z(c), z(d)
    ntk_same: Tensor  # A[a, b, c, d]: covariance of H(ab) and H(cd)
    ntk_cross: Tensor  # B[a, c, b, d]: covariance of H(ab) and H(cd)
    ntk_outputs_same: Tensor  # D[a, b, c, d]: cumulant of H(ab), z(c), z(d)
    ntk_outputs_cross: Tensor  # F[a, c, b, d]: cumulant of H(ab), z(c), z(d)
    third_first: Tensor  # P[a, d, b, c]: E[dH(a; bc) z(d)]
    third_second: Tensor  # Q[a, b, c, d]: E[dH(a; bc) z(d)]
    fourth_one: Tensor  # R[a, b, c, d]: E[ddI(a; bcd)]
    fourth_two_hessians: Tensor  # S[a, b, c, d]: E[ddII(ab; cd)]
    fourth_two_same: Tensor  # T[a, c, b, d]: E[ddII(ab; cd)]
    fourth_two_other: Tensor  # U[a, d, b, c]: E[ddII(ab; cd)]


def first_layer(inputs: Matrix, rates: Rates) -> Statistics:
    """The layer of the inputs: z is Gaussian, and its NTK deterministic."""
    covariance = rates.weight * inputs + rates.bias
    ntk = rates.weight_rate * inputs + rates.bias_rate
    zero = jnp.zeros_like(ntk)
    none = jnp.zeros(2 * ntk.shape, ntk.dtype)
    return Statistics._make([covariance, ntk, zero, zero, *[none] * 11])


@eqx.filter_jit
def next_layer(
    old: Statistics,
    rates: Rates,
    width: Scalar,
    pairs: Pair,
    joint: JointMoments,
) -> Statistics:
    """The statistics after `width` neurons of the layer `old` and a layer of `rates`.

    `pairs` and `joint` are moments of the activation under `old.covariance`.
    """
    layer = _Layer(old, rates, width, pairs, joint)
    matrices = (
        rates.weight * pairs[0, 0] + rates.bias,
        layer.own[0, 0] + rates.bias_rate,
        rates.weight * _mean_change(old, layer.product),
        layer.ntk_mean(),
    )
    tensors = (*layer.second_cumulants(), *layer.third(), *layer.fourth())
    return Statistics._make((*matrices, *tensors))


class _Layer:
    """One step of the recursion. φ is the activation, C and λ are the weight's variance
    and speed, and ω(ab) = λ φ_a φ_b + C Θ_ab φ′_a φ′_b."""

    def __init__(
        self,
        old: Statistics,
        rates: Rates,
        width: Scalar,
        pairs: Pair,
        joint: JointMoments,
    ):
        self.old, self.joint, self.width = old, joint, width
        self.weight, self.rate = rates.weight, rates.weight_rate
        self.product = pairs  # φφ
        self.slopes = pairs[1:, 1:]  # φ′φ′
        self.slope_first = pairs[1:, :-1]  # φ′φ
        scaled = rates.weight * old.ntk[None, None] * pairs[1:, 1:]
        self.own = rates.weight_rate * pairs[:-1, :-1] + scaled  # ω
        self.own_slope = self.own[1:, :-1]  # ∂ω(ab)/∂z_a
        self.chain = rates.weight * pairs[1, 1]  # C E φ′φ′

    def ntk_mean(self) -> Matrix:
        """E[H] − Θ: the mean NTK of a neuron with itself also varies with z."""
        old, g = self.old, self.slopes
        same, cross = old.ntk_outputs_same, old.ntk_outputs_cross
        at_first = jnp.einsum("abaa->ab", same) + 2 * jnp.einsum("aaba->ab", cross)
        at_second = jnp.einsum("abbb->ab", same) + 2 * jnp.einsum("abbb->ab", cross)
        at_both = jnp.einsum("abab->ab", same)
        at_both += jnp.einsum("aabb->ab", cross) + jnp.einsum("abba->ab", cross)
        with_z = at_first * g[2, 0] + 2 * at_both * g[1, 1] + at_second * g[0, 2]
        change = _mean_change(old, self.own) + self.chain * old.ntk_mean
        return change + self.weight * with_z / 2

    def second_cumulants(self) -> tuple[Tensor, ...]:
        """V, A, B, D and F."""
        old, joint, c = self.old, self.joint, self.weight / self.width
        product, own = self.product, self.own
        ntk_12, ntk_34 = first_pair(old.ntk), second_pair(old.ntk)
        chain_12, chain_34 = first_pair(self.chain), second_pair(self.chain)
        four, half, slopes = joint(0, 0, 0, 0), joint(1, 1, 0, 0), joint(1, 1, 1, 1)
        other_half = swapped(half)

        outputs = four - outer(product[0, 0], product[0, 0])
        inherited = vary(product, old.outputs)
        outputs = c * outputs + self.weight * vary_second(product, inherited)

        ntk_outputs = self.rate * four + self.weight * ntk_12 * half
        ntk_outputs = ntk_outputs - outer(own[0, 0], product[0, 0])
        moved = vary(own, old.outputs) + chain_12 * old.ntk_outputs_same
        same = c * ntk_outputs + self.weight * vary_second(product, moved)

        ntk = self.rate**2 * four - outer(own[0, 0], own[0, 0])
        mixed = ntk_12 * half + ntk_34 * other_half
        ntk = ntk + self.rate * self.weight * mixed
        ntk = (ntk + self.weight**2 * ntk_12 * ntk_34 * slopes) / self.width
        by_outputs = vary(own, swapped(old.ntk_outputs_same))
        ntk = ntk + vary_second(own, moved) + chain_34 * by_outputs
        ntk = ntk + chain_12 * chain_34 * old.ntk_same

        # Slots (a, c, b, d) of H(ab) and H(cd), or of H(ab), z(c) and z(d).
        cross = self.weight * c * slopes * slots(old.ntk, 0, 2) * slots(old.ntk, 1, 3)
        cross = cross + chain_12 * chain_34 * old.ntk_cross
        cross_outputs = self.weight * c * joint(1, 0, 1, 0) * slots(old.ntk, 0, 2)
        first = move(self.slope_first, old.ntk_outputs_cross)
        inherited = self.weight**2 * move_second(self.slope_first, first)
        return (
            self.weight * outputs,
            ntk,
            cross,
            same,
            cross_outputs + inherited,
        )

    def third(self) -> tuple[Tensor, Tensor]:
        """P and Q."""
        old, joint, c = self.old, self.joint, self.weight / self.width
        ntk = old.ntk
        curved = joint(2, 1, 1, 0)  # φ″_a φ′_b φ′_c φ_d
        # Slots (a, d, b, c) of dH(a; bc) z(d).
        first = self.weight * c * joint(2, 0, 1, 1)
        first = first * slots(ntk, 0, 2) * slots(ntk, 0, 3)
        moved = move(self.slope_first, old.third_first)
        by_ntk = first_pair(self.product[2, 0]) * repeated(old.ntk_cross)
        chain_34 = second_pair(self.chain)
        first = first + self.weight * chain_34 * (moved + by_ntk)
        # Slots (a, b, c, d).
        second = self.rate * joint(1, 0, 1, 0) + self.weight * (
            first_pair(ntk) * curved
        )
        second = c * second * slots(ntk, 0, 2)
        moved = move(self.own_slope, old.ntk_outputs_cross)
        moved = moved + first_pair(self.chain) * old.third_second
        second = second + self.weight * move_second(self.slope_first, moved)
        return first, second

    def fourth(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R, S, T and U."""
        old, joint, c = self.old, self.joint, self.weight / self.width
        ntk, own = old.ntk, self.own
        ntk_12, ntk_34 = first_pair(ntk), second_pair(ntk)
        chain_12, chain_34 = first_pair(self.chain), second_pair(self.chain)
        both, curved = chain_12 * chain_34, joint(2, 2, 1, 1)

        one = self.rate * joint(2, 0, 1, 1)
        one = one + self.weight * ntk_12 * joint(3, 1, 1, 1)
        one = c * one * slots(ntk, 0, 2) * slots(ntk, 0, 3)
        moved = move(self.own_slope, old.third_first)
        moved = moved + first_pair(own[2, 0]) * repeated(old.ntk_cross)
        one = one + chain_34 * moved + both * old.fourth_one

        two = self.rate * joint(1, 1, 1, 1) + self.weight * ntk_12 * curved
        two = c * two * slots(ntk, 0, 2) * slots(ntk, 1, 3)
        two = two + chain_34 * first_pair(own[1, 1]) * old.ntk_cross
        two = two + both * old.fourth_two_hessians

        # Slots (a, c, b, d).
        mixed = joint(2, 1, 1, 0)
        same = self.rate**2 * joint(1, 0, 1, 0)
        same = same + self.rate * self.weight * (
            ntk_12 * mixed + ntk_34 * swapped(mixed)
        )
        same = same + self.weight**2 * ntk_12 * ntk_34 * joint(2, 1, 2, 1)
        same = same * slots(ntk, 0, 2) / self.width
        moved = move(self.own_slope, old.ntk_outputs_cross)
        moved = moved + chain_12 * old.third_second
        same = same + move_second(self.own_slope, moved)
        other = move(self.own_slope, swapped(old.third_second))
        same = same + chain_34 * other + both * old.fourth_two_same

        # Slots (a, d, b, c).
        crossed = joint(2, 1, 2, 1) * slots(ntk, 0, 2) * slots(ntk, 0, 3)
        crossed = self.weight * c * crossed * slots(ntk, 2, 1)
        return one, two, same, crossed + both * old.fourth_two_other


def _mean_change(old: Statistics, g: Pair) -> Matrix:
    """The change of E g(z_a, z_b) for a neuron of `old`, from its covariance and its
    fourth cumulant."""
    v = old.outputs
    change = vary_matrix(g, old.covariance_mean)
    aaaa, bbbb = jnp.einsum("aaaa->a", v)[:, None], jnp.einsum("bbbb->b", v)[None, :]
    third = jnp.einsum("aaab->ab", v) * g[3, 1] + jnp.einsum("abbb->ab", v) * g[1, 3]
    pairs = jnp.einsum("aabb->ab", v) + 2 * jnp.einsum("abab->ab", v)
    quartic = aaaa * g[4, 0] + 4 * third + 2 * pairs * g[2, 2] + bbbb * g[0, 4]
    return change + quartic / 8
