"""Numerical values of the bounds of Huang & Yau (2020), up to unknown constants."""

import math
from typing import Any

import equinox as eqx
import numpy as np

from .._internal.validation import (
    require_concrete,
    require_instance,
    require_integer,
    require_order,
    require_positive,
    require_scale,
)
from .._kernels.infinite_width import InfiniteKernels, on_training_points
from .._kernels.kernels import Kernels
from .._kernels.ntk_analysis import spectrum

# The logarithm of the largest number of float64, rounded down.
_MOST_LOG = 709.0


class Bounds(eqx.Module):
    """Times, widths and levels in the theorems: see [`nth.theory.bounds`][]."""

    n: int
    """The number of training points."""

    width: float
    """The width m."""

    smallest_eigenvalue: float
    """λ, the smallest eigenvalue of the NTK on the training points."""

    largest_order: int
    """p*, the highest level p. Assumptions 2.1 and 2.2 have `2p* + 1` derivatives."""

    constant: float
    """The prefactors: c, C and those in ≲."""

    log_power: float
    """The power of ln m, C or C′."""

    def time(self, epsilon: float = 0.01) -> float:
        """(n/λ) ln(n/ε), the time at which Σ (f − y)² ≤ ε (Corollary 2.5); 0 for
        ε ≥ n."""
        return self._slowest() * self._log_reduction(epsilon)

    @property
    def window(self) -> float:
        """The time up to which Theorem 2.6 holds (eq. 17):
        `min{c √(λm/n), m^{p*/(2(p*+1))}}/(ln m)^C′`."""
        self._require_concrete()
        first = self.constant * math.sqrt(
            self.smallest_eigenvalue * self.width / self.n
        )
        return min(first / self._log(self.width), self.horizon)

    def training_error(self, t: float) -> float:
        """Σ_b (f_b − y_b)² at time t: n e^{−λt/(2n)} (Corollary 2.5), for widths above
        `width_to_converge`. Level 2 decays four times as fast, as e^{−2λt/n} along the
        slowest mode."""
        self._require_concrete()
        exponent = self.smallest_eigenvalue * _time(t) / (2 * self.n)
        return self.constant * self.n * math.exp(-exponent)

    @property
    def horizon(self) -> float:
        """The time up to which eq. 12 and Corollary 2.4 hold, for any λ:
        `m^{p*/(2(p*+1))}/(ln m)^C′`."""
        self._require_concrete()
        power = self.largest_order / (2 * (self.largest_order + 1))
        return self.width**power / self._log(self.width)

    def kernel_deviation(self, order: int) -> float:
        """|K⁽ʳ⁾ − 𝒦⁽ʳ⁾/m^{r/2−1}| at initialization, r = `order` (eq. 11):
        (ln m)^C/m^{(r−1)/2}, where 𝒦⁽ʳ⁾ is deterministic, and 0 for odd r. 𝒦⁽²⁾ is the
        NTK of [`nth.infinite.kernels`][], and 𝒦⁽⁴⁾/m is `fourth` of
        [`nth.infinite.corrections`][]."""
        return self._kernel_scale((self._rank(order) - 1) / 2)

    def kernel_size(self, order: int) -> float:
        """|K⁽ʳ⁾| at any time up to `horizon`, r = `order` (eq. 12):
        (ln m)^C/m^{r/2−1}."""
        return self._kernel_scale(self._rank(order) / 2 - 1)

    def kernel_rate(self, t: float) -> float:
        """|∂K⁽²⁾/∂t| at a time t up to `horizon` (Corollary 2.4): (1 + t)(ln m)^C/m."""
        return (1 + _time(t)) * self._kernel_scale(1.0)

    def width_to_converge(self, epsilon: float = 0.01) -> float:
        """The width above which training converges (eq. 14): the m with
        m = C′ (n/λ)³ (ln m)^C ln(n/ε)²."""
        log = self._log_reduction(epsilon)
        return self._width_of(self.constant * _power(self._slowest(), 3) * log**2)

    def width_for(self, order: int, error: float, epsilon: float = 0.01) -> float:
        """The width at which the level-p error bound, taken at the time (n/λ) ln(n/ε)
        of convergence, is equal to `error` (eq. 18). For p = 2 it grows as n^{7/2}, for
        p = 3 as n³ at fixed λ, as the paper says after Theorem 2.6."""
        order, error = self._order(order), require_positive("error", error)
        t = self.time(epsilon)
        growth = _power(t, order - 1) * (1 + t) * min(t, self._slowest())
        return _power(self.constant * math.sqrt(self.n) * growth / error, 2 / order)

    def error(self, order: int, t: float) -> float:
        """(Σ_b (f_b − f̃_b)²)^{1/2} at level p and time t (eq. 18):
        (1 + t) t^{p−1} √n min{t, n/λ}/m^{p/2}, proven for even p."""
        order, t = self._order(order), _time(t)
        growth = (1 + t) * _power(t, order - 1) / _power(self.width, order / 2)
        return self.constant * math.sqrt(self.n) * growth * min(t, self._slowest())

    def kernel_error(self, order: int, t: float) -> float:
        """|K⁽²⁾ − K̃⁽²⁾| entry by entry, at level p and time t (eq. 19):
        [1 + (1 + t) t (ln m)^C min{t, n/λ}/m] (1 + t) t^{p−1}/m^{p/2}."""
        order, t = require_order("order", order), _time(t)
        self._require_concrete()
        fed_back = (1 + t) * t * self._log(self.width) * min(t, self._slowest())
        growth = (1 + t) * _power(t, order - 1) / _power(self.width, order / 2)
        return self.constant * (1 + fed_back / self.width) * growth

    def order_for(self, error: float, t: float) -> int:
        """The smallest even level p ≤ p* whose error bound at time t (eq. 18, `error`)
        is at most `error`.

        **Raises:** `ValueError` beyond the window, where the bound does not hold, or if
        no level up to p* has such a bound.
        """
        error, t = require_positive("error", error), _time(t)
        if t > self.window:
            raise ValueError(
                f"t must be at most {self.window:.4g}, the window in which the bound "
                f"holds (eq. 17); got {t:.4g}. Give an earlier time, or a larger width "
                "to nth.theory.bounds."
            )
        levels = range(2, self.largest_order + 1, 2)
        errors = {p: self.error(p, t) for p in levels}
        for p, bound in errors.items():
            if bound <= error:
                return p
        best = min(errors, key=lambda p: errors[p])
        raise ValueError(
            f"error: no level up to largest_order = {self.largest_order} has a bound "
            f"of {error:.4g} at t = {t:.4g}; the smallest is {errors[best]:.4g}, of "
            f"level {best}. Give an error no smaller than that, an earlier time, or a "
            "larger width or largest_order to nth.theory.bounds."
        )

    def _rank(self, order: int) -> int:
        """r of K⁽ʳ⁾, up to p* + 1."""
        self._require_concrete()
        why = "the largest_order of these bounds and one more"
        return require_integer("order", order, 2, self.largest_order + 1, why)

    def _kernel_scale(self, power: float) -> float:
        """(ln m)^C/m^power."""
        self._require_concrete()
        return self.constant * self._log(self.width) / _power(self.width, power)

    def _require_concrete(self) -> None:
        require_concrete("bounds", self, "theory.Bounds")

    def _order(self, order: int) -> int:
        self._require_concrete()
        why = "the largest_order of these bounds"
        return require_integer("order", order, 2, self.largest_order, why)

    def _log_reduction(self, epsilon: float) -> float:
        """ln(n/ε), at least 0."""
        self._require_concrete()
        return max(0.0, math.log(self.n / require_positive("epsilon", epsilon)))

    def _slowest(self) -> float:
        """n/λ."""
        self._require_concrete()
        if self.smallest_eigenvalue <= 0:
            return math.inf
        return self.n / self.smallest_eigenvalue

    def _log(self, width: float) -> float:
        return _power(math.log(width), self.log_power)

    def _width_of(self, amount: float) -> float:
        """The larger m with m/(ln m)^C = `amount`."""
        if self.log_power == 0 or math.isinf(amount):
            return amount

        from scipy.optimize import brentq  # slow to import

        def excess(log: float) -> float:
            return log - self.log_power * math.log(log) - math.log(amount)

        # m/(ln m)^C increases for ln m > C.
        start = max(self.log_power, 1.0)
        if start > _MOST_LOG or excess(_MOST_LOG) < 0:
            return math.inf
        if excess(start) >= 0:
            return math.exp(start)
        return math.exp(float(brentq(excess, start, _MOST_LOG)))  # pyright: ignore


def _time(t: Any) -> float:
    require_concrete("t", t, "theory.Bounds")
    return float(require_scale("t", t))


def _power(base: float, exponent: int | float) -> float:
    """base^exponent, infinite where Python would raise `OverflowError`."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def bounds(
    kernels: Kernels | InfiniteKernels,
    width: Any,
    *,
    largest_order: int = 4,
    constant: float = 1.0,
    log_power: float = 0.0,
) -> Bounds:
    """The quantities in Theorems 2.3 and 2.6 and their corollaries, for given points.

    The theorems are for squared error, scalar networks of the parameterization `"nth"`,
    and hold with a probability that tends to one as m grows. They do not
    specify the constant c of eq. 17, the C′ of eq. 14, the powers C and C′ of ln m, and
    the factors in ≲, which depend on depth, activation and data. So
    the results are **scales, not guarantees**: comparisons between widths, times and
    levels are meaningful, a single number only if the constants are known.

    **Arguments:**

    - `kernels`: from [`nth.kernels`][], of any order, or
        [`nth.infinite.InfiniteKernels`][] on the training points.
    - `width`: the width m.
    - `largest_order`: p*, the highest level p in question, from 2 to 12.
    - `constant`: the value of c, of C′ as a factor, and of the factor in ≲.
    - `log_power`: the value of the powers of ln m.

    **Returns:** [`nth.theory.Bounds`][]. Times are in units of 1/(learning rate).

    **Raises:** `ValueError` for invalid numbers, or kernels with several outputs.
    """
    kernels = on_training_points(kernels)
    require_instance("kernels", kernels, Kernels, "nth.kernels(...)")
    if kernels.out_shape:
        raise ValueError(
            f"kernels have outputs of shape {kernels.out_shape}, and the theorems are "
            'for scalar networks: use out_size="scalar".'
        )
    require_concrete("kernels", kernels, "theory.bounds")
    require_concrete("width", width, "theory.bounds")
    require_concrete("log_power", log_power, "theory.bounds")
    ntk_spectrum = spectrum(kernels)
    require_concrete("kernels", ntk_spectrum, "theory.bounds")
    smallest = (
        0.0
        if np.isinf(ntk_spectrum.time_scales[-1])
        else float(ntk_spectrum.eigenvalues[-1])
    )
    m = require_positive("width", width)
    if m < 3:
        raise ValueError(f"width must be at least 3; got {m:g}.")
    return Bounds(
        n=len(ntk_spectrum.eigenvalues),
        width=m,
        smallest_eigenvalue=smallest,
        largest_order=require_order("largest_order", largest_order),
        constant=require_positive("constant", constant),
        log_power=float(require_scale("log_power", log_power)),
    )
