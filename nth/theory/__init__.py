"""The assumptions and bounds of Huang & Yau (2020), laziness, and kernel motion.

The quantities in the theorems, evaluated for a given network and data set.
"""

from ._assumptions import (
    ActivationCheck as ActivationCheck,
    DataCheck as DataCheck,
    check_activation as check_activation,
    check_data as check_data,
)
from ._bounds import Bounds as Bounds, bounds as bounds
from ._motion import Motion as Motion, laziness as laziness, motion as motion
