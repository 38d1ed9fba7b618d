"""MkDocs hooks: what pages show is asked of the code itself.

The options of the command are read from it, and the scripts of examples/theory draw
their figures on their small settings, unless these are newer than the code.
"""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import click

MARKER = "<!-- options of python -m nth -->"
NAMES = "<!-- all public names -->"
ROOT = Path(__file__).parent.parent
SMALL = ROOT / "docs" / "figures" / "small"
FIGURE = re.compile(r"^!\[(.*)\]\(\.\./figures/(\w+\.png)\)$", re.MULTILINE)


def on_pre_build(**_: object) -> None:
    """Redraw the figures of the theory section."""
    SMALL.mkdir(exist_ok=True)
    code = [*ROOT.glob("nth/*.py"), *ROOT.glob("examples/theory/*.py")]
    newest = max(path.stat().st_mtime for path in code)
    for script in sorted(ROOT.glob("examples/theory/[!_]*.py")):
        done = SMALL / f"{script.stem}.txt"  # what it printed
        if not done.exists() or done.stat().st_mtime < newest:
            command = [sys.executable, script, "--small"]
            ran = subprocess.run(
                command, cwd=SMALL, check=True, stdout=subprocess.PIPE, text=True
            )
            done.write_text(ran.stdout)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Tables of `python -m nth`'s options and of all names in place of their markers,
    and below each figure of the theory section the one that this build drew.
    """
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, _options())
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, _names())
    return FIGURE.sub(_with_small, markdown)


def _with_small(figure: re.Match[str]) -> str:
    alt, name = figure.groups()
    if not (SMALL / name).exists():
        raise FileNotFoundError(f"no script of examples/theory draws {name}.")
    title = "The same on the small setting, drawn when these pages were built"
    folded = f"![{alt}, on a small setting](../figures/small/{name})"
    return f'{figure[0]}\n\n??? note "{title}"\n\n    {folded}\n'


def _names() -> str:
    """Each public name with the first line of its docstring."""
    from nth import _api  # its names are in the order of a computation

    public = {n: v for n, v in vars(_api).items() if not n.startswith("_")}
    modules = {n: v for n, v in public.items() if inspect.ismodule(v)}
    rows = [_row(n, v) for n, v in public.items() if n not in modules]
    for module, content in modules.items():
        own = f"nth.{module}"  # what a module imports from elsewhere is not its own
        rows += [
            _row(f"{module}.{n}", v)
            for n, v in vars(content).items()
            if not n.startswith("_") and getattr(v, "__module__", "").startswith(own)
        ]
    return "\n".join(["| name | |", "|---|---|", *rows])


def _row(name: str, value: object) -> str:
    first = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
    return f"| [`nth.{name}`][] | {first.replace('|', chr(92) + '|')} |"


def _options() -> str:
    from nth._command_line.command import main

    context = click.Context(main, info_name="python -m nth", **main.context_settings)
    rows = [param.get_help_record(context) for param in main.get_params(context)]
    lines = ["| option | meaning |", "|---|---|"]
    for name, meaning in filter(None, rows):
        meaning = re.sub(r"\s+", " ", meaning).replace("|", r"\|")
        meaning = re.sub(r"--\w+", r"`\g<0>`", meaning)
        lines.append(f"| `{name}` | {meaning} |")
    return "\n".join(lines)
