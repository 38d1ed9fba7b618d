"""Helpers with no mathematics of the hierarchy: checks of arguments, warnings, files,
symmetric eigenvalue problems, and what a jaxpr contains."""
