"""Every Python code block of the README and the documentation runs."""

import inspect
import multiprocessing
import os
import re
import runpy
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import chain
from operator import attrgetter
from pathlib import Path

import pytest
from scripts import error_of

import nth

ROOT = Path(__file__).parents[1]
code_blocks = runpy.run_path(str(ROOT / "docs" / "draw.py"))["code_blocks"]
PAGES = {
    str(page.relative_to(ROOT)): blocks
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (blocks := code_blocks(page.read_text()))
}


# Each name that the API reference shows, such as `infinite.kernels`.
NAMES = {
    name
    for page in (ROOT / "docs").rglob("*.md")
    for name in re.findall(r"^::: nth\.([\w.]+)", page.read_text(), re.M)
}


def docstring_blocks() -> list[str]:
    """The code blocks of the docstrings of public names."""
    docstrings = (inspect.getdoc(attrgetter(name)(nth)) or "" for name in sorted(NAMES))
    return [block for text in docstrings for block in code_blocks(text)]


@pytest.fixture(scope="module")
def user() -> Iterator[Executor]:
    """A process with JAX's defaults, not those of the tests. It runs one page after
    another, so that what pages have in common is compiled once.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        yield process
        # At once: it takes 10 s to destroy thousands of compiled functions.
        process.submit(os._exit, 0)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str, user: Executor, tmp_path: Path) -> None:
    """The blocks of a page run in order, as one script."""
    run("\n".join(PAGES[page]), user, tmp_path)


def test_code_blocks_of_docstrings_run(user: Executor, tmp_path: Path) -> None:
    """Each alone."""
    run(f"for code in {docstring_blocks()!r}:\n    exec(code, {{}})", user, tmp_path)


def run(code: str, user: Executor, folder: Path) -> None:
    script = folder / "page.py"
    script.write_text(code)
    assert not user.submit(error_of, script, folder).result()


def test_every_public_name_has_an_example() -> None:
    """In its docstring, or in a code block of a page. The class of a result has the
    example of the function that returns it, and a base class those of its subclasses.
    """
    code = "\n".join([*chain(*PAGES.values()), *docstring_blocks()])
    code = re.sub(r"(?<![\w.])(infinite|theory|scaling)\.", r"nth.\1.", code)
    used = set(re.findall(r"nth\.([\w.]+)", code))
    for module, names in re.findall(r"^from nth\.(\w+) import (.*)$", code, re.M):
        used |= {f"{module}.{name.strip(' (),')}" for name in names.split(",")}
    used |= {name.rpartition(".")[0] for name in used}  # of a method: its class
    values = {name: attrgetter(name)(nth) for name in NAMES}
    shown = [values[name] for name in NAMES & used]
    shown += [value.__annotations__.get("return") for value in shown]
    kinds = tuple(value for value in shown if isinstance(value, type))
    without = [
        name
        for name, value in values.items()
        if name not in used
        and not any(isinstance(value, type) and issubclass(k, value) for k in kinds)
    ]
    assert not without


def test_cross_references_lead_to_documented_names() -> None:
    """A page shows those that lead nowhere as raw Markdown."""
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "nth").rglob("*.py")]
    for file in files:
        text = file.read_text()
        for name in re.findall(r"\[`nth\.([^`]+)`\]\[\]|\]\[nth\.([^\]]+)\]", text):
            target = "".join(name)
            shown = target in NAMES or target.rpartition(".")[0] in NAMES
            assert shown, (file.name, target)
            attrgetter(target)(nth)  # it exists
