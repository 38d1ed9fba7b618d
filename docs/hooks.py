"""MkDocs hooks: tables that pages show are made from the code and from stored results.

No page draws a figure: those of `docs/figures` are stored, and `.ci/run` runs the
scripts that make them on small settings.
"""

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import click

MARKER = "<!-- options of python -m nth -->"
NAMES = "<!-- all public names -->"
ROOT = Path(__file__).parent.parent
# A table of docs/benchmarks.json; after a bar, the start of the cases that are shown.
BENCHMARK = re.compile(r"^<!-- benchmark: (\w+)(?: \| (.*?))? -->$", re.MULTILINE)
# Where and when it was measured.
SETTING = re.compile(r"^<!-- setting: (\w+) -->$", re.MULTILINE)
# An image that is not in a link.
IMAGE = re.compile(r"(?<!\[)!\[([^\]]*)\]\(([^)\s]+\.(?:png|gif))\)")
# Figures have 150 dots to the inch, of which a column of 688 pixels shows 7.
COLUMN, DOTS = 688, 1050


def on_page_markdown(markdown: str, **_: object) -> str:
    """Tables in place of their markers; each image links to its file, to enlarge it."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, _options())
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, _names())
    markdown = BENCHMARK.sub(lambda match: benchmark(*match.groups()), markdown)
    markdown = SETTING.sub(lambda match: setting(match[1]), markdown)
    return IMAGE.sub(lambda match: _image(*match.groups()), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Short code such as `1e-4` stays on one line: browsers break it after a hyphen."""
    return re.sub(
        r"<code>(?=[^<-]*-[^<]*</code>)(?=[^<]{,36}<)", "<code class=whole>", html
    )


def _image(text: str, file: str) -> str:
    """A narrow figure is not stretched to the column, so that text has one size."""
    header = (ROOT / "docs" / "figures" / Path(file).name).read_bytes()[:24]
    size = ""
    if header.startswith(b"\x89PNG"):
        dots = int.from_bytes(header[16:20], "big")
        size = f"{{ width={round(COLUMN * dots / DOTS)} }}" if dots < DOTS else ""
    return f"[![{text}]({file}){size}]({file})"


def stored(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "benchmarks.json").read_text())[name]


def benchmark(name: str, start: str | None) -> str:
    """The table of a benchmark, and below it where and when it was measured."""
    record = stored(name)
    rows = [r for r in record["rows"] if r["case"].startswith(start or "")]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns).replace("case", "", 1) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) - 1))
    for row in rows:
        case = row["case"].removeprefix(start or "").strip(", ") or row["case"]
        case = case.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        case = re.sub(r"e-(\d)", "e\N{NON-BREAKING HYPHEN}\\1", case)
        cells = [case, *(_number(row.get(key)) for key in columns[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    table = ['<div class="benchmark" markdown>', "", *lines, "", "</div>"]
    return "\n".join([*table, *(["", setting(name)] if start is None else [])])


def setting(name: str) -> str:
    """The command, the date, the machine and the versions."""
    record = stored(name)
    machine = record["machine"]
    parts = [f"{machine['processor']}, {machine['cores']} cores"]
    parts += [machine["device"]] if machine["device"] != "cpu" else []
    parts += [f"{package} {number}" for package, number in record["versions"].items()]
    caption = f"*`python -m benchmarks {name}`, {record['date']}: {', '.join(parts)}."
    return caption + (f" {record['note']}*" if "note" in record else "*")


def _number(value: Any) -> str:
    """Three digits; powers of ten where they are shorter."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e6):
        return f"{value:.0f}"
    if not math.isfinite(value):
        return str(value)
    if 1e-2 <= abs(value) < 1e4:
        return f"{value:#.3g}".rstrip(".")
    digits, _, power = f"{value:.1e}".partition("e")
    return f"${digits} \\cdot 10^{{{int(power)}}}$"


def _names() -> str:
    """Each public name with the first line of its docstring."""
    from nth import _api  # its names are in the order of a computation

    shown = {
        name
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"^::: nth\.([\w.]+)", page.read_text(), re.MULTILINE)
    }
    public = {n: v for n, v in vars(_api).items() if not n.startswith("_")}
    modules = {n: v for n, v in public.items() if inspect.ismodule(v)}
    rows = [_row(n, v) for n, v in public.items() if n not in modules]
    for module, content in modules.items():
        members = {f"{module}.{n}": v for n, v in vars(content).items()}
        rows += [_row(n, v) for n, v in members.items() if n in shown]
    return "\n".join(["| name | |", "|---|---|", *rows])


def _row(name: str, value: object) -> str:
    first = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
    first = re.sub("[:,]$", ".", first)  # of an equation that follows
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
