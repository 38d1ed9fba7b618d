"""Redraw the figures of pages: each is drawn by the code blocks of its page.

python docs/draw.py [PAGE ...]    # such as docs/tutorials/digits.md; all by default
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from textwrap import dedent

DOCS = Path(__file__).parent
PAGES = [*(DOCS / "tutorials").glob("*.md"), *(DOCS / "howto").glob("*.md")]
# A block may be indented, inside a tab.
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def code_blocks(text: str) -> list[str]:
    """The blocks of Markdown that are run, by this script and in tests."""
    return [dedent(code) for _, code in BLOCK.findall(text)]


def main(pages: list[Path]) -> None:
    for page in pages:
        code = "\n".join(code_blocks(page.read_text()))
        if "savefig" not in code:
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            environment = {**os.environ, "MPLBACKEND": "agg"}
            command = [sys.executable, "-c", code]
            subprocess.run(command, cwd=folder, env=environment, check=True)
            for figure in sorted(Path(folder).glob("*.[pg][ni][gf]")):  # png and gif
                shutil.copy(figure, DOCS / "figures" / figure.name)
                print(f"{page}: {figure.name}")
            print(f"{page}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main([Path(page) for page in sys.argv[1:]] or sorted(PAGES))
