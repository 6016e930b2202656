"""The page: one HTML file without anything from outside. All texts of files are text there, never markup."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.report.parts import Chart, Section
from stages.runtime.terminal import printable

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    title: str
    made: str  # when, in words
    summary: str
    sections: tuple[Section, ...]


def render_page(page: Page) -> bytes:
    """The page as UTF-8. Its policy lets a browser run our script alone, and fetch nothing."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counter = itertools.count(1)

    def inline(chart: Chart) -> Markup:
        return Markup(chart.svg.replace(Chart.PREFIX, f"chart{next(counter)}-"))

    return (
        environment.get_template("page.html.jinja")
        .render(
            page=page,
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            digest=digest,
            inline=inline,
            contents=contents(page.sections),
        )
        .encode()
    )


def contents(sections: Sequence[Section]) -> list[tuple[str, str]]:
    """(anchor, title) of each section, for the table of contents."""
    return [(section.anchor, section.title) for section in sections]


def _shown(value: Any) -> Any:
    """Texts as `printable` has them: names of files may turn the writing direction, or hold bytes that are no text."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
