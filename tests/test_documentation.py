"""Every Python code block of the README and the documentation runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
# A block may be indented, inside a tab.
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.M | re.S)
PAGES = {
    str(page.relative_to(ROOT)): blocks
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (blocks := [dedent(code) for _, code in BLOCK.findall(page.read_text())])
}


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str, tmp_path: Path) -> None:
    """The blocks of a page run in order, as one script in a separate process."""
    script = tmp_path / "page.py"
    script.write_text("\n".join(PAGES[page]))
    env = {
        **os.environ,
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
