"""The coefficients of ROS34PW2, a Rosenbrock W-method of order 3 with 4 stages.

Rang & Angermann, *New Rosenbrock W-methods of order 3 for partial differential
algebraic equations of index 1*, BIT Numerical Mathematics 45, 2005. With any matrix W
in place of the Jacobian,

    k_i = F(y₀ + h Σ_{j<i} α_ij k_j) + h W Σ_{j≤i} γ_ij k_j,    y₁ = y₀ + h Σ_j b_j k_j.

The method is stiffly accurate, and L-stable if W is the Jacobian; its embedded method
has order 2. u = h Γ k takes it to the form of `RosenbrockCoefficients`.
"""

import numpy as np

from .abstract_rosenbrock import RosenbrockCoefficients

STAGES = 4
GAMMA = 0.435866521508459

ALPHA = np.array(
    [
        [0, 0, 0, 0],
        [0.8717330430169180, 0, 0, 0],
        [0.8445706001536942, -0.1129906423648418, 0, 0],
        [0, 0, 1, 0],
    ]
)

WEIGHTS = np.array([0.2421238070609535, -1.2232505839045147, 1.5452602553351020, GAMMA])

EMBEDDED = np.array([0.3781090314581937, -0.0960422922124232, 0.5, 0.2179332607542295])

SLOPES = np.array(
    [
        [GAMMA, 0, 0, 0],
        [-0.8717330430169180, GAMMA, 0, 0],
        [-0.9033805701304408, 0.0541806723880953, GAMMA, 0],
        [0.2421238070609535, -1.2232505839045147, 0.5452602553351021, GAMMA],
    ]
)
"""Γ."""

_INVERSE = np.linalg.inv(SLOPES)


def _lower_rows(matrix: np.ndarray) -> list[list[float]]:
    return [matrix[i, :i].tolist() for i in range(STAGES)]


def _extension() -> np.ndarray:
    """Weights q of a continuous extension of order 2,

        y(t₀ + θh) = y₀ + h Σ_j (θ (b − q)_j + θ² q_j) k_j.

    The conditions of order 2, Σ w = θ, Σ w α = θ²/2 and Σ w γ = 0, are three equations
    for q; this is the least solution.
    """
    rows = np.stack([np.ones(STAGES), ALPHA.sum(1), SLOPES.sum(1)])
    return np.linalg.lstsq(rows, np.array([0, 1 / 2, 0]), rcond=None)[0]


COEFFICIENTS = RosenbrockCoefficients(
    order=3,
    gamma=GAMMA,
    a=_lower_rows(ALPHA @ _INVERSE),
    c=_lower_rows(-_INVERSE),
    b=(WEIGHTS @ _INVERSE).tolist(),
    error=((WEIGHTS - EMBEDDED) @ _INVERSE).tolist(),
    d=[(-_extension() @ _INVERSE).tolist()],  # θ (b − q) + θ² q = θ b − θ(1 − θ) q
)
