"""The data: points, targets and the training loss L (Huang & Yau, eq. 3)."""
