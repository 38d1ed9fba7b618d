"""The program `examples/all_digits.py`: all 1,797 digits and ten classes.

1,500 training and 297 test digits, levels 2, 3 and 4, softmax cross-entropy, width 256,
float32, to t = 400, matrix-free form; compilation is included.
"""

import re
import sys
import tempfile
from pathlib import Path

from .record import Row, durations

EXAMPLE = Path(__file__).parent.parent / "examples" / "all_digits.py"
LINE = re.compile(r"^(truth|p = \d): .*, (\d+) evaluations, (\d+) s$", re.MULTILINE)


def measure(small: bool) -> list[Row]:
    command = [sys.executable, str(EXAMPLE), *(["--small"] if small else [])]
    with tempfile.TemporaryDirectory() as folder:
        whole, printed = durations(command, folder)
    rows: list[Row] = [
        {"case": case, "evaluations": int(evaluations), "time (s)": float(taken)}
        for case, evaluations, taken in LINE.findall(printed)
    ]
    return [*rows, {"case": "the whole program", **whole}]
