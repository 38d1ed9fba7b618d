"""Training in steps by any optimizer, at every level (for SGD Huang & Yau, eq. 29), the
critical learning rate, and the catapult map (Lewkowycz et al. 2020)."""
