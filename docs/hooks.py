"""MkDocs hooks: the command's options are read from the command itself."""

import re

import click

MARKER = "<!-- options of python -m nth -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """A table of `python -m nth`'s options, in place of its marker."""
    return markdown.replace(MARKER, _options()) if MARKER in markdown else markdown


def _options() -> str:
    from nth.__main__ import main

    context = click.Context(main, info_name="python -m nth", **main.context_settings)
    rows = [param.get_help_record(context) for param in main.get_params(context)]
    lines = ["| option | meaning |", "|---|---|"]
    for name, meaning in filter(None, rows):
        meaning = re.sub(r"\s+", " ", meaning).replace("|", r"\|")
        meaning = re.sub(r"--\w+", r"`\g<0>`", meaning)
        lines.append(f"| `{name}` | {meaning} |")
    return "\n".join(lines)
