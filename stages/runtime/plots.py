"""Plots and tables beside a result: they may fail, the result stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.runtime.terminal import console, printable


@contextmanager
def warn_if_it_fails(what: str) -> Iterator[None]:
    """An error in this context becomes a warning: `what` was not made, and why. For what is made once the result is written."""
    try:
        yield
    except Exception as error:  # a full disk, a name that a font can't draw, a bug: none is worth the result
        console.print(f"[yellow]warning[/] {what}: not made ({type(error).__name__}: {error}). The result is complete "
                      "without it", highlight=False, soft_wrap=True)  # fmt: skip


def plot_text(name: str) -> str:
    """A name as matplotlib draws it: without its `$` markup, and with escapes for what no font has.

    A zero-width space goes before a leading `_`: matplotlib leaves labels that begin with one out of a legend.
    """
    return ("\u200b" if name.startswith("_") else "") + printable(name).replace("$", r"\$")
