"""Scaling laws in width: sweeps over widths and initializations, and exponents."""

from ._exponent import Exponent as Exponent, fit as fit
from ._sweep import Measure as Measure, Sweep as Sweep, sweep as sweep
