"""Comparison of levels with the trained network: errors, table, figure, data set."""
