"""Text for the terminal. Names of files, clips and classes come from others: a terminal must not take them for orders."""

import re
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

_LABEL = re.compile(r"\[(yellow|bold red)\]([\w -]+)\[/\]")  # the only markup: a coloured word


def printable(text: str) -> str:
    r"""The text with escapes such as \x1b in place of all that is no picture: orders to the terminal, turned writing
    direction, bytes that are no text. Line ends, tabs and blanks stay.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs"


class Terminal(Console):
    """Prints every string as `printable` has it, in tables and titles too. Markup in strings is not read.

    There is one exception: a string may begin with, or be, a coloured word of our own: `[yellow]warning[/] the rest`.
    """

    def __init__(self, **options: Any):
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        label = None if options.get("markup") is False else _LABEL.match(text)
        options["markup"] = False
        if label is None:
            return super().render_str(printable(text), **options)
        return Text.assemble((label[2], label[1]), super().render_str(printable(text[label.end() :]), **options))


console = Terminal(stderr=True)  # messages and progress; results that are tables go to standard output
