"""Widgets in one HTML file that needs neither kernel nor network.

The page holds the same ES modules that a notebook runs, and gives them a model with `get`, `set`
and `on` instead of a kernel's. Where no script runs, the static HTML of each widget stands there.
"""

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from aotoolkit.atomic import replacing
from aotoolkit.widgets.base import FrontEnd

_FOLDER = Path(__file__).parent


class HasHTML(Protocol):
    """What a notebook can show: an `Answer`, an `AnswerGrid`, `IPython.display.HTML`."""

    def _repr_html_(self) -> Any: ...


def page(parts: Sequence[FrontEnd | HasHTML], *, title: str) -> str:
    """One HTML page of widgets, which can be used in it, and of other parts, one after another.

    Args:
        parts: widgets, and whatever else has `_repr_html_`.
        title: of the page.
    """
    styles = [_read("page.css")]
    modules: dict[str, str] = {}
    sections = []
    for number, part in enumerate(parts):
        if not isinstance(part, FrontEnd):
            sections.append(f"<section>{part._repr_html_()}</section>")
            continue
        name = type(part).__name__
        if name not in modules:
            modules[name] = part._esm
            styles.append(part._css)
        sections.append(
            f'<section id="ao-{number}" data-widget="{name}">{part.static_html()}</section>\n'
            + _json_script(f"ao-{number}-state", part.front_end_state())
        )
    body = "\n".join(sections)
    script = ""
    if modules:
        script = (
            f"{_json_script('ao-modules', modules)}\n"
            f'<script type="module">\n{_read("page.js")}</script>\n'
        )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{''.join(styles)}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n{script}</body>\n</html>\n"
    )


def save_page(
    path: str | os.PathLike[str], parts: Sequence[FrontEnd | HasHTML], *, title: str
) -> Path:
    """Write `page(...)`, whole or not at all.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(page(parts, title=title), encoding="utf-8")
    return path


def _json_script(name: str, value: Any) -> str:
    """JSON in a script element, which no text in it can end or turn into a comment."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
