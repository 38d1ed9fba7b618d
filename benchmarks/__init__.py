"""Benchmarks: `python -m benchmarks` runs those that README and documentation quote."""
