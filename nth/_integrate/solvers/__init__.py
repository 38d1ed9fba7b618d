"""Solvers for stiff training dynamics, with the interface of diffrax."""
