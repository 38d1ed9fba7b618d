"""The program `examples/all_digits.py`: all 1,797 digits and ten classes.

1,500 training and 297 test digits, levels 2, 3 and 4, softmax cross-entropy, width 256,
float32, to t = 400, matrix-free form; compilation is included.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .record import Row

EXAMPLE = Path(__file__).parent.parent / "examples" / "all_digits.py"
LINE = re.compile(r"^(truth|p = \d): .*, (\d+) evaluations, (\d+) s$", re.MULTILINE)


def measure(small: bool) -> list[Row]:
    command = [sys.executable, EXAMPLE, *(["--small"] if small else [])]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        printed = subprocess.run(
            command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        seconds = time.perf_counter() - start
    rows: list[Row] = [
        {"case": case, "evaluations": int(evaluations), "time (s)": float(taken)}
        for case, evaluations, taken in LINE.findall(printed)
    ]
    return [*rows, {"case": "the whole program", "time (s)": seconds}]
