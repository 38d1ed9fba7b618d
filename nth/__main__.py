"""`python -m nth`: see `nth._command_line.command`."""

import sys

from ._command_line.command import cli

if __name__ == "__main__":
    sys.exit(cli())
