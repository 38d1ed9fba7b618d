"""The bounds of Huang & Yau (2020) in numbers, with the constants they leave free."""

import math
from typing import Any

import equinox as eqx
import numpy as np

from ._errors import require_instance, require_integer, require_positive, require_scale
from ._kernels import Kernels
from ._spectrum import spectrum


class Bounds(eqx.Module):
    """Times, widths and orders that theorems ask for: see [`nth.theory.bounds`][]."""

    n: int
    """Training points."""

    width: float
    """The width m."""

    smallest_eigenvalue: float
    """λ, the smallest eigenvalue of the NTK on the training points."""

    largest_order: int
    """p*, of which Assumptions 2.1 and 2.2 take 2p* + 1."""

    constant: float
    """The constants in front: c, C and those hidden in ≲."""

    log_power: float
    """The power of ln m, C or C′."""

    def time(self, epsilon: float = 0.01) -> float:
        """(n/λ) ln(n/ε), by when Σ (f − y)² has fallen to ε (Corollary 2.5)."""
        return self._slowest() * math.log(self.n / require_positive("epsilon", epsilon))

    @property
    def window(self) -> float:
        """Up to when Theorem 2.6 holds (eq. 17):
        min{c √(λm/n), m^{p*/(2(p*+1))}}/(ln m)^C′."""
        power = self.largest_order / (2 * (self.largest_order + 1))
        first = self.constant * math.sqrt(
            self.smallest_eigenvalue * self.width / self.n
        )
        return min(first, self.width**power) / self._log(self.width)

    def width_to_converge(self, epsilon: float = 0.01) -> float:
        """The width above which training converges (eq. 14): the m with
        m = C′ (n/λ)³ (ln m)^C ln(n/ε)²."""
        log = math.log(self.n / require_positive("epsilon", epsilon))
        return self._width_of(self.constant * self._slowest() ** 3 * log**2)

    def width_for(self, order: int, error: float, epsilon: float = 0.01) -> float:
        """The width at which the level-p error bound, taken at the time (n/λ) ln(n/ε)
        of convergence, falls to `error` (eq. 18). For p = 2 it grows as n^{7/2}, for
        p = 3 as n³ at fixed λ, as the paper says after Theorem 2.6."""
        order = require_integer("order", order, 2)
        t = self.time(epsilon)
        power = t ** (order - 1) * (1 + t) * min(t, self._slowest())
        amount = (
            self.constant * math.sqrt(self.n) * power / require_positive("error", error)
        )
        return amount ** (2 / order)

    def error(self, order: int, t: float) -> float:
        """(Σ_b (f_b − f̃_b)²)^{1/2} at level p and time t (eq. 18):
        (1 + t) t^{p−1} √n min{t, n/λ}/m^{p/2}, proven for even p."""
        order, t = require_integer("order", order, 2), float(require_scale("t", t))
        growth = (1 + t) * t ** (order - 1) / self.width ** (order / 2)
        return self.constant * math.sqrt(self.n) * growth * min(t, self._slowest())

    def kernel_error(self, order: int, t: float) -> float:
        """|K⁽²⁾ − K̃⁽²⁾| entry by entry, at level p and time t (eq. 19):
        [1 + (1 + t) t (ln m)^C min{t, n/λ}/m] (1 + t) t^{p−1}/m^{p/2}."""
        order, t = require_integer("order", order, 2), float(require_scale("t", t))
        fed_back = (1 + t) * t * self._log(self.width) * min(t, self._slowest())
        growth = (1 + t) * t ** (order - 1) / self.width ** (order / 2)
        return self.constant * (1 + fed_back / self.width) * growth

    def order_for(self, error: float, t: float) -> int:
        """The least even level p with (t/√m)^p ≤ `error` (after eq. 21):
        p > ln(1/δ)/ln(√m/t).

        **Raises:** `ValueError` at t ≥ √m, where a higher order does not help.
        """
        error, t = require_positive("error", error), require_positive("t", t)
        if t >= math.sqrt(self.width):
            raise ValueError(
                f"t = {t:.4g} is not below √m = {math.sqrt(self.width):.4g}: there no "
                "order makes the bound small. Give an earlier time, or a wider network."
            )
        needed = math.log(1 / error) / math.log(math.sqrt(self.width) / t)
        return max(2, 2 * math.ceil(needed / 2))

    def _slowest(self) -> float:
        """n/λ."""
        if self.smallest_eigenvalue <= 0:
            return math.inf
        return self.n / self.smallest_eigenvalue

    def _log(self, width: float) -> float:
        return math.log(width) ** self.log_power

    def _width_of(self, amount: float) -> float:
        """The larger m with m/(ln m)^C = `amount`."""
        if self.log_power == 0 or math.isinf(amount):
            return amount

        from scipy.optimize import brentq  # slow to import

        def excess(log: float) -> float:
            return log - self.log_power * math.log(log) - math.log(amount)

        # m/(ln m)^C rises from ln m = C on.
        least = max(self.log_power, 1.0)
        if excess(least) >= 0:
            return math.exp(least)
        most = 2 * least
        while excess(most) < 0:
            most *= 2
        return math.exp(float(brentq(excess, least, most)))  # pyright: ignore


def bounds(
    kernels: Kernels,
    width: Any,
    *,
    largest_order: int = 4,
    constant: float = 1.0,
    log_power: float = 0.0,
) -> Bounds:
    """What Corollary 2.5 and Theorem 2.6 ask for, on these points.

    The theorems are for squared error, scalar networks of the parameterisation `"nth"`,
    and hold with a probability that tends to one as m grows. They leave free: the
    constant c of eq. 17, the C′ of eq. 14, the powers C and C′ of ln m, and the factors
    hidden in ≲ of eqs. 18 and 19, which depend on depth, activation and data. So what
    this gives are **scales, and no guarantees**: differences between widths, times and
    orders mean something, a single number only with constants of your own.

    **Arguments:**

    - `kernels`: of [`nth.kernels`][], of any order.
    - `width`: m.
    - `largest_order`: p*, at least every level p that is asked about.
    - `constant`: what stands for c, for C′ as a factor, and for the factor of ≲.
    - `log_power`: what stands for the powers of ln m.

    **Returns:** [`nth.theory.Bounds`][]. Times are in units of 1/(learning rate).

    **Raises:** `ValueError` for bad numbers, or kernels of several outputs.
    """
    require_instance("kernels", kernels, Kernels, "nth.kernels(...)")
    if kernels.out_shape:
        raise ValueError(
            f"kernels are of outputs of shape {kernels.out_shape}, and the theorems "
            'of a scalar network: use out_size="scalar".'
        )
    found = spectrum(kernels)
    smallest = 0.0 if np.isinf(found.time_scales[-1]) else float(found.eigenvalues[-1])
    m = require_positive("width", width)
    if m < 3:
        raise ValueError(f"width must be at least 3; got {m:g}.")
    return Bounds(
        n=len(found.eigenvalues),
        width=m,
        smallest_eigenvalue=smallest,
        largest_order=require_integer("largest_order", largest_order, 2),
        constant=require_positive("constant", constant),
        log_power=float(require_scale("log_power", log_power)),
    )
