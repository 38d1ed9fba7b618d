"""Training in steps: gradient descent at every level (Huang & Yau, eq. 29), the
critical learning rate, and the catapult map (Lewkowycz et al. 2020)."""
