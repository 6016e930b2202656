"""Tables as CSV. Names come from others: any of them can be written, and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(rows: Iterable[Sequence[Any]]) -> bytes:
    r"""The rows as CSV, in UTF-8, with a line feed behind each. What isn't UTF-8 in a name becomes an escape such as \udce9."""
    return b"".join(map(_line, rows))


def _line(row: Sequence[Any]) -> bytes:
    text = io.StringIO()
    # A lone carriage return in a cell is quoted only if the line's end has one too (Python 3.11).
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace") + b"\n"
