"""The closed O(1/width) correction to the constant kernel: no integration."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._closed_form import Times, as_matrices, as_trajectory, require_squared_error
from ._errors import require, require_times
from ._exponentials import end_of_time, nested_decay, spectrum
from ._hierarchy import DenseHierarchy
from ._kernels import Kernels
from ._problem import Problem
from ._types import Scalar


class Perturbation(eqx.Module):
    """Every term of order 1/width, and no other: see [`nth.perturbative`][]."""

    ts: Float[Array, " T"]
    """The requested times; the last may be ∞."""

    train: Float[Array, "T n *out"]
    """Outputs on the training points."""

    test: Float[Array, "T q *out"]
    """Outputs on the test points; q = 0 if the problem has none."""

    loss: Float[Array, " T"]
    """The training loss L of those outputs."""

    ntk: Float[Array, "T m ..."]
    """The NTK at each time, Θ₀ + Θ¹(t), of shape `(T, m, *out, n, *out)`."""


def perturbative(kernels: Kernels, problem: Problem, ts: Times) -> Perturbation:
    """Gradient flow of the squared error up to order 1/width, in closed form.

    On the constant kernel the residual is r(t) = e^{−Θ₀t/n}(f₀ − y). It moves the NTK,
    and that moves the outputs, each to first order (Dyer & Gur-Ari 2020, section 3.2):

        Θ¹(t) = −∫₀ᵗ [K⁽³⁾ − ∫₀ˢ K⁽⁴⁾ · r(u) du/n] · r(s) ds/n,
        f(t) = y + r(t) − ∫₀ᵗ e^{−Θ₀(t−s)/n} Θ¹(s) r(s) ds/n,

    all kernels at initialisation, the last slot of K⁽⁴⁾ at the earliest time. In the
    eigenbasis of Θ₀ each integral is one of e^{−λs} over stretches of time, in closed
    form also where eigenvalues coincide or are zero.

    The level p = 4 of [`nth.solve`][] holds the same terms, and feeds the moved outputs
    back to the residual; so the two differ by what is of higher order in 1/width.

    **Arguments:**

    - `kernels`: made by [`nth.kernels`][] on the points of `problem`, of order 4 or
        more.
    - `problem`: targets, and the loss [`nth.SquaredError`][].
    - `ts`: times, shape `(T,)`, increasing, from 0 on; the last may be `jnp.inf` if the
        NTK on the training points is not singular.

    **Returns:** [`nth.Perturbation`][]. Work is m·n³ numbers for each time, and memory
    some tens of times that of K⁽⁴⁾.

    Derivatives with respect to the kernels need eigenvalues that are distinct, as those
    of `jnp.linalg.eigh` do; with respect to the targets they do not.

    **Raises:** `ValueError` for another loss, bad times, kernels of an order below 4 or
    that do not fit, or t = ∞ with a singular NTK, where the correction grows for ever.
    """
    level = DenseHierarchy(kernels, problem, 2)
    require_squared_error(problem, "perturbative")
    if kernels.order < 4:
        raise ValueError(
            f"kernels go up to r = {kernels.order}, and the correction takes K(3) and "
            "K(4): form them with nth.kernels(network, problem, order=4)."
        )
    times = require_times(ts, kernels[1].dtype, with_infinity=True)
    tensors = kernels.tensors[:4]
    outputs, ntk, singular = _solve(tensors, level.problem, times)
    outputs = require(
        outputs,
        ~(singular & jnp.isinf(times)),
        "ts has inf, and the NTK on the training points is singular: along its null "
        "vectors the correction grows for ever. Give finite times.",
    )
    path = as_trajectory(outputs, level.problem, times)
    return Perturbation(path.ts, path.train, path.test, path.loss, ntk)


class _Modes(eqx.Module):
    """What stands still, in the eigenbasis of Θ₀: later slots are modes k, and hold the
    residual's part in each, Δ_k.
    """

    rates: Float[Array, " N"]
    """λ_k, times n."""

    test_rows: Float[Array, "Q N"]
    """Θ₀ on the test points."""

    train: tuple[Float[Array, "N N N"], Float[Array, "N N N N"]]
    """K⁽³⁾ and K⁽⁴⁾ of the training points, the first slot a mode too."""

    test: tuple[Float[Array, "Q N N"], Float[Array, "Q N N N"]]
    """K⁽³⁾ and K⁽⁴⁾ of the test points."""

    motion: tuple[Float[Array, "M N N"], Float[Array, "M N N N"]]
    """K⁽³⁾ and K⁽⁴⁾ with two slots that are points."""


@eqx.filter_jit
def _solve(
    tensors: tuple[Array, ...], problem: Problem, ts: Float[Array, " T"]
) -> tuple[Float[Array, "T m *out"], Float[Array, "T m ..."], Array]:
    """Outputs and NTK at each time, and whether the NTK is singular."""
    f, kernel, *higher = tensors
    start, rows, square, residual = as_matrices(f, kernel, problem)
    size = len(residual)
    rates, vectors, null = spectrum(square)
    delta = vectors.T @ residual
    modes = _in_modes(rates, vectors, delta, rows[size:], higher)
    times = jnp.where(jnp.isinf(ts), end_of_time(rates, null), ts / problem.n_train)

    def at(t: Scalar) -> tuple[Array, Array]:
        decayed = jnp.exp(-rates * t) * delta
        spent = nested_decay(jnp.zeros_like(rates), rates, t=t) * delta
        train, test = _correction(modes, t)
        train = start[:size] - residual + vectors @ (decayed + train)
        test = start[size:] - modes.test_rows @ spent + test
        outputs = jnp.concatenate([train, test]).reshape(f.shape)
        return outputs, kernel + _motion(modes, t).reshape(kernel.shape)

    outputs, ntk = jax.lax.map(at, times)
    return outputs, ntk, jnp.any(null)


def _in_modes(
    rates: Array, vectors: Array, delta: Array, test_rows: Array, higher: list[Array]
) -> _Modes:
    size = len(rates)
    weighted = vectors * delta[None]
    third = higher[0].reshape(-1, size, size)
    fourth = higher[1].reshape(-1, size, size, size)
    third = jnp.einsum("abc,ck->abk", third, weighted)
    fourth = jnp.einsum("abcd,ck,dl->abkl", fourth, weighted, weighted)
    motion = (third, fourth)
    rotated = [jnp.einsum("ab...,bj->aj...", x, weighted) for x in motion]
    train = [jnp.einsum("a...,ai->i...", x[:size], vectors) for x in rotated]
    third, fourth = (x[size:] for x in rotated)
    return _Modes(
        rates, test_rows @ vectors, (train[0], train[1]), (third, fourth), motion
    )


def _correction(
    modes: _Modes, t: Scalar
) -> tuple[Float[Array, " N"], Float[Array, " Q"]]:
    """f¹(t) of df¹/dt = −Θ₀ f¹ − Θ¹ r, on the modes of the training points and on the
    test points.

    Read backwards in time, mode i of f¹ decays by λ_i down to where Θ¹ feeds it with
    mode j of r, that by λ_j down to where K⁽³⁾ has moved Θ¹ by mode k of r, and so on:
    a chain of stretches, at the rates λ_i, λ_j, λ_j + λ_k, λ_j + λ_k + λ_l. What a test
    point gathers does not decay: its chains begin with the rate 0.
    """
    every = modes.rates
    i, j = every[:, None, None, None], every[None, :, None, None]
    k, l = every[None, None, :, None], every[None, None, None, :]  # noqa: E741

    def fed(kernels: tuple[Array, Array], *before: Array) -> Array:
        chain = *before, j, j + k
        short = nested_decay(*(rate[..., 0] for rate in chain), t=t)
        long = nested_decay(*chain, j + k + l, t=t)
        third, fourth = kernels
        return jnp.sum(third * short, (1, 2)) - jnp.sum(fourth * long, (1, 2, 3))

    train = fed(modes.train, i)
    if len(modes.test_rows) == 0:
        return train, jnp.zeros_like(train[:0])
    still = jnp.zeros_like(i[:1])
    gathered = modes.test_rows @ fed(modes.train, still, i)
    return train, fed(modes.test, still) - gathered


def _motion(modes: _Modes, t: Scalar) -> Float[Array, "M N"]:
    """Θ¹(t) = −∫₀ᵗ [K⁽³⁾ − ∫₀ˢ K⁽⁴⁾ · r(u) du] · r(s) ds."""
    still = jnp.zeros_like(modes.rates)
    k, l = modes.rates[:, None], modes.rates[None, :]  # noqa: E741
    third, fourth = modes.motion
    short = nested_decay(still, modes.rates, t=t)
    long = nested_decay(still[:, None], k, k + l, t=t)
    return jnp.sum(fourth * long[None, None], (2, 3)) - third @ short
