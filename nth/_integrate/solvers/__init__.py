"""Solvers for stiff and long solves."""
