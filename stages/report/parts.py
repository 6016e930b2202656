"""The parts of the page: sections of tables, charts, pictures and texts. The template draws them; all strings are plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

LONG_WORD, LONG_TEXT = 28, 60  # characters


@dataclass(frozen=True)
class Cell:
    """`sort`: the number that a column of numbers is sorted by; None: the text is sorted, and empty cells come last."""

    text: str
    sort: float | None = None

    @property
    def is_long(self) -> bool:
        """Whether it needs a wide column, and has words, such as paths, that must be broken."""
        return len(self.text) > LONG_TEXT or max(map(len, self.text.split()), default=0) > LONG_WORD


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    small: bool = False  # several stand side by side

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether its cells are numbers or empty."""
        return tuple(
            all(line[i].sort is not None or not line[i].text for line in self.rows) for i in range(len(self.columns))
        )


@dataclass(frozen=True)
class Chart:
    """`svg`: the markup of a chart, made by `svg.draw`. Its ids begin with `PREFIX`, which the page replaces."""

    kind: ClassVar[str] = "chart"
    PREFIX: ClassVar[str] = "chart-number-"
    caption: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI, or "" if it can't be had; `text` says what it shows."""

    source: str
    text: str


@dataclass(frozen=True)
class Pictures:
    kind: ClassVar[str] = "pictures"
    caption: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Details:
    """Parts that the reader can open and close."""

    kind: ClassVar[str] = "details"
    title: str
    parts: tuple[Part, ...]
    opened: bool = False


Part = Table | Chart | Pictures | Text | Details


@dataclass(frozen=True)
class Section:
    anchor: str  # of the link in the table of contents
    title: str
    parts: tuple[Part, ...]


def number(value: float | None, form: str = ".4g") -> Cell:
    """A number as a cell; None and NaN are an empty one."""
    if value is None or math.isnan(value):
        return Cell("")
    return Cell(format(value, form), float(value))


def row(*values: str | float | Cell | None) -> tuple[Cell, ...]:
    """Cells of texts and numbers."""
    return tuple(
        value if isinstance(value, Cell) else Cell(value) if isinstance(value, str) else number(value)
        for value in values
    )


def table(
    caption: str, columns: Sequence[str], rows: Sequence[tuple[Cell, ...]], note: str = "", *, small: bool = False
) -> Table:
    """A table without the columns that are empty in every row."""
    full = [i for i in range(len(columns)) if any(line[i].text for line in rows)]
    lines = tuple(tuple(line[i] for i in full) for line in rows)
    return Table(caption, tuple(columns[i] for i in full), lines, note, small)
