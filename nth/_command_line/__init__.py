"""The command line: `python -m nth`."""
