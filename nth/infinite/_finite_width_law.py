"""Mean and covariance of trained networks over initializations, to order 1/width."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._analytic.decay_integrals import (
    Eigen,
    decay_with_zero,
    eigendecomposition,
    end_of_time,
)
from .._custom_types import Scalar
from .._internal.validation import require, require_times
from .._network.finiteness import checked_finite
from .._network.memory import require_memory
from .._problem.problem import Problem
from ._finite_width import Corrections
from ._resummation import averaged_law

# The number of tensors over four points in memory.
_TENSORS = 40


class _Statistics(NamedTuple):
    """Statistics of `Corrections` in the eigenbasis of the NTK on the training points.

    M rows: N eigenvectors, then the test points. N columns: eigenvectors.
    """

    rates: Float[Array, " M"]  # eigenvalues; 0 at test points
    test_ntk: Float[Array, "M N"]  # Θ of test points; 0 in the first N rows
    target: Float[Array, " N"]
    output: Float[Array, "M M"]  # 𝒦
    output_change: Float[Array, "M M"]  # E f f − 𝒦
    ntk_change: Float[Array, "M N"]  # E K⁽²⁾ − Θ
    ntk_covariance: Float[Array, "M N M N"]
    ntk_output: Float[Array, "M N N M"]  # Cov(K⁽²⁾, f f)
    third: Float[Array, "M N N M"]  # E K⁽³⁾ f
    fourth: Float[Array, "M N N N"]  # E K⁽⁴⁾


def finite_width_ensemble(
    corrections: Corrections, problem: Problem, ts: Any, *, resummed: bool
) -> tuple[Array, Array, Array]:
    """Times, means and covariances: see `nth.infinite.ensemble`."""
    m, dtype = problem.n_train + problem.n_test, problem.y_train.dtype
    example = "nth.infinite.corrections(problem.x, width=..., ...)"
    if corrections.ntk.shape != (m, m) or corrections.ntk.dtype != dtype:
        raise ValueError(
            f"kernels are corrections on {len(corrections.ntk)} points of dtype "
            f"{corrections.ntk.dtype}, and problem has m = {m} points of {dtype}: form "
            f"them by {example}."
        )
    if problem.y_train.ndim > 1:
        raise ValueError(
            f"problem has targets of shape {problem.y_train.shape}: at finite width "
            "outputs depend on each other. Give the targets of one output, of shape "
            f"({problem.n_train},)."
        )
    checked_finite("kernels", jax.tree.leaves(corrections), f"form them by {example}.")
    times = require_times(ts, dtype, with_infinity=True)
    require_memory(
        "ts",
        f"the covariance of {m} points at {len(times)} times",
        dtype.itemsize * (m**2 * len(times) + _TENSORS * m**4),
        "Give fewer times, or fewer points in problem.x_test.",
    )
    means, covariances, eigen = _law(corrections, problem.y_train, times)
    if resummed:
        *averaged, of_ntk = averaged_law(corrections, problem.y_train, times)
        expanded = _law(of_ntk, problem.y_train, times)
        means = means + averaged[0] - expanded[0]
        covariances = covariances + averaged[1] - expanded[1]
    means = require(
        means,
        ~(jnp.any(eigen.null) & jnp.isinf(times[-1])),
        "ts has inf, and the NTK on the training points is singular: along its null "
        "vectors the correction grows without bound. Give finite times.",
    )
    return times, means, covariances


@eqx.filter_jit
def _law(
    corrections: Corrections, targets: Float[Array, " n"], ts: Float[Array, " T"]
) -> tuple[Float[Array, "T m"], Float[Array, "T m m"], Eigen]:
    """Mean and covariance of the outputs at each time, and the spectrum of the NTK.

    One network follows `nth.perturbative`, where also e^{−K⁽²⁾t} is expanded about
    e^{−Θt} to second order. Each term is then a mean of a product of `Corrections`.
    """
    n = len(targets)
    eigen = eigendecomposition(corrections.ntk[:n, :n])
    rates, modes, null, _ = eigen
    times = jnp.where(jnp.isinf(ts), end_of_time(rates, null), ts / n)
    extra = len(corrections.ntk) - n
    identity = jnp.eye(extra, dtype=rates.dtype)
    basis = jax.scipy.linalg.block_diag(modes.T, identity)
    statistics = _in_basis(corrections, targets, rates, basis)

    def at(t: Scalar) -> tuple[Array, Array]:
        mean, covariance = _Law(statistics, t).mean_and_covariance()
        return basis.T @ mean, basis.T @ covariance @ basis

    means, covariances = jax.lax.map(at, times)
    return means, covariances, eigen


def _in_basis(
    given: Corrections,
    targets: Float[Array, " n"],
    rates: Float[Array, " n"],
    basis: Float[Array, "M M"],
) -> _Statistics:
    n = len(rates)

    def turned(tensor: Array) -> Array:
        for axis in range(tensor.ndim):
            tensor = jnp.moveaxis(jnp.tensordot(basis, tensor, (1, axis)), 0, axis)
        return tensor

    extra = len(basis) - n
    return _Statistics(
        rates=jnp.pad(rates, (0, extra)),
        test_ntk=turned(given.ntk)[:, :n].at[:n].set(0),
        target=basis[:n, :n] @ targets,
        output=turned(given.nngp),
        output_change=turned(given.nngp_correction),
        ntk_change=turned(given.ntk_correction)[:, :n],
        ntk_covariance=turned(given.ntk_covariance)[:, :n, :, :n],
        ntk_output=turned(given.ntk_output_covariance)[:, :n, :n],
        third=turned(given.third)[:, :n, :n],
        fourth=turned(given.fourth)[:, :n, :n, :n],
    )


class _Law:
    """The law at one time.

    An output is f = f⁰ + f¹, where f⁰ has the kernel Θ and f¹ the O(1/width) terms in
    δ = K⁽²⁾ − Θ, K⁽³⁾ and K⁽⁴⁾: chains of time intervals, in each of which an output
    decays at its rate, as in `nth.perturbative`. An index j, k or l is an eigenvector,
    p a row of the tensor, q a row of f₀, and r, s rows of the result.
    """

    def __init__(self, statistics: _Statistics, t: Scalar):
        self.of, self.t = statistics, t
        rates = statistics.rates[: len(statistics.target)]
        j, k, l = (  # noqa: E741
            jnp.expand_dims(rates, axes) for axes in ((1, 2), (0, 2), (0, 1))
        )
        self.one = self._chains(rates)
        self.two = self._chains(j[..., 0], k[..., 0])
        self.three = self._chains(j[..., 0], (j + k)[..., 0])
        self.four = self._chains(j, j + k, j + k + l)

    def _chains(self, *rates: Array) -> tuple[Array, Array]:
        """The chain of each row and `rates`, and its integral over time."""
        rows = jnp.expand_dims(self.of.rates, tuple(range(1, rates[0].ndim + 1)))
        return decay_with_zero(rows, *(rate[None] for rate in rates), t=self.t)

    def _output(
        self, chains: tuple[Array, Array], terms: Float[Array, "M ..."], axes: int
    ) -> Float[Array, "M ..."]:
        """The output of a sum of `terms`, p and `axes` eigenvectors, times its chain.

        Outputs on eigenvectors are sources of those on test points.
        """
        letters = "jkl"[:axes]
        equation = f"p{letters},p{letters}...->p..."
        direct, later = (jnp.einsum(equation, chain, terms) for chain in chains)
        return direct - jnp.tensordot(self.of.test_ntk, later[: len(self.of.target)], 1)

    def mean_and_covariance(self) -> tuple[Float[Array, " M"], Float[Array, "M M"]]:
        of, y = self.of, self.of.target
        n = len(y)
        kept = self._kept()
        target = jnp.pad(y, (0, len(kept) - n))
        mean = target - kept[:, :n] @ y + self._mean_change()
        linear = kept @ (of.output + of.output_change) @ kept.T
        mixed = kept @ self._with_start().T
        return mean, linear + mixed + mixed.T + self._from_two_ntks()

    def _kept(self) -> Float[Array, "M M"]:
        """f⁰ − E f⁰ as a function of f₀."""
        n = len(self.of.target)
        decay, integral = (
            chain[:n] for chain in decay_with_zero(self.of.rates, t=self.t)
        )
        identity = jnp.eye(len(self.of.rates), dtype=decay.dtype)
        return identity.at[:, :n].set(
            jnp.concatenate([jnp.diag(decay), -self.of.test_ntk[n:] * integral[None]])
        )

    def _squares(self) -> Float[Array, "N N"]:
        """E (f₀ − y)(f₀ − y)ᵀ."""
        n, y = len(self.of.target), self.of.target
        return self.of.output[:n, :n] + jnp.outer(y, y)

    def _ntk_twice(self) -> Float[Array, "M N N"]:
        """E δ_pj δ_jk."""
        n = len(self.of.target)
        return jnp.einsum("pjjk->pjk", self.of.ntk_covariance[:, :, :n])

    def _mean_change(self) -> Float[Array, " M"]:
        """E f¹: the terms of odd order in f₀ − y have one y or three."""
        of, y = self.of, self.of.target
        n = len(y)
        first = of.ntk_change * y[None]
        second = -self._ntk_twice() * y[None, None]
        with_j = jnp.einsum("pjkj->pjk", of.third[..., :n]) * y[None, None]
        with_k = jnp.einsum("pjkk->pjk", of.third[..., :n]) * y[None, :, None]
        pair = of.output[:n, :n]
        cubes = jnp.einsum("jk,l->jkl", self._squares(), y)
        cubes = cubes + jnp.einsum("jl,k->jkl", pair, y)
        cubes = cubes + jnp.einsum("kl,j->jkl", pair, y)
        return (
            self._output(self.one, first, 1)
            + self._output(self.two, second, 2)
            - self._output(self.three, with_j + with_k, 2)
            + self._output(self.four, of.fourth * cubes[None], 3)
        )

    def _with_start(self) -> Float[Array, "M M"]:
        """E f¹_r f₀_q."""
        of, squares, pairs = self.of, self._squares(), self.of.output
        n = len(squares)
        columns = pairs[:n]  # 𝒦_jq
        first = of.ntk_change[:, :, None] * columns[None]
        first = first + jnp.einsum("pjjq->pjq", of.ntk_output)
        second = self._ntk_twice()[..., None] * columns[None, None]
        own = of.third[..., :n]
        third = of.third * squares[None, :, :, None]
        third = third + jnp.einsum("pjkj,kq->pjkq", own, columns)
        third = third + jnp.einsum("pjkk,jq->pjkq", own, columns)
        cubes = jnp.einsum("jq,kl->jklq", columns, squares)
        cubes = cubes + jnp.einsum("kq,jl->jklq", columns, squares)
        cubes = cubes + jnp.einsum("lq,jk->jklq", columns, squares)
        fourth = of.fourth[..., None] * cubes[None]
        return (
            -self._output(self.one, first, 1)
            + self._output(self.two, second, 2)
            + self._output(self.three, third, 2)
            - self._output(self.four, fourth, 3)
        )

    def _from_two_ntks(self) -> Float[Array, "M M"]:
        """E f¹_r f¹_s of the terms linear in δ."""
        terms = self.of.ntk_covariance * self._squares()[None, :, None, :]
        once = self._output(self.one, terms, 1)  # r, then row and eigenvector of s
        return self._output(self.one, jnp.moveaxis(once, 0, 2), 1).T
