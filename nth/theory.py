"""The assumptions and bounds of Huang & Yau (2020), laziness, and the kernel's motion.

Numbers that the theorems speak of, on a network and a data set at hand.
"""

from ._assumptions import (
    ActivationCheck as ActivationCheck,
    DataCheck as DataCheck,
    check_activation as check_activation,
    check_data as check_data,
)
from ._bounds import Bounds as Bounds, bounds as bounds
from ._motion import Motion as Motion, laziness as laziness, motion as motion
