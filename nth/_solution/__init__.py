"""The result of a solve, and its files."""
