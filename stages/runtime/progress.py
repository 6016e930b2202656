"""The progress of a command: a bar on a terminal, a line every 30 s elsewhere, such as in a log file."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stages.runtime.terminal import console, printable

LINE_SECONDS = 30.0


def progress_bar(unit: str, *, disable: bool = False) -> Progress:
    """A bar with the count, the rate in `unit` per second, the elapsed and remaining time, and a `note`.

    Tasks have the fields `rate` and `note`.
    """
    kind = Progress if console.is_terminal else ProgressLines
    return kind(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} " + unit + "/s"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        _Note(),
        console=console,
        disable=disable,
    )


class _Note(ProgressColumn):
    """The task's `note`, such as a shard's name, as it is: a TextColumn would read markup in it."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.fields["note"]))


class ProgressLines(Progress):
    """Prints a line at an update when the last line is 30 s old, and one at the end. It draws no bar."""

    printed_at = 0.0

    def start(self) -> None:
        self.printed_at = time.monotonic()

    def stop(self) -> None:
        self._print_lines()

    def refresh(self) -> None:
        """Nothing: only `update` and `advance` print."""

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._print_if_due()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_if_due()

    def _print_if_due(self) -> None:
        if time.monotonic() - self.printed_at >= LINE_SECONDS:
            self._print_lines()

    def _print_lines(self) -> None:
        self.printed_at = time.monotonic()
        for task in () if self.disable else self.tasks:
            cells = (column(task) for column in self.columns if not isinstance(column, str | BarColumn))
            line = " ".join(cell.plain.strip() for cell in cells if isinstance(cell, Text) and cell.plain.strip())
            console.print(line, markup=False, highlight=False, soft_wrap=True)
