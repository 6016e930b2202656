"""The logs of a run: metrics.jsonl, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from cache.store import write_atomically
from stages.config.file import flat
from stages.runtime.terminal import Terminal, printable

console = Terminal(stderr=True)


def progress_bar(unit: str, *, disable: bool = False) -> Progress:
    """A bar with the count, the rate in `unit` per second, the elapsed and remaining time, and a `note`."""
    return Progress(
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


class RunLog:
    """Appends rows to metrics.jsonl and their numbers to TensorBoard. Rows after `step`, where the run resumes, are cut."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def row(self, kind: str, step: int, values: dict) -> None:
        """Append the row `{"kind": kind, "step": step, **values}`. TensorBoard gets nested numbers as kind/a/b."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in flat(values, f"{kind}/", "/").items():
            if isinstance(value, (int, float)):
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_metrics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, [] without such a file. The last line is left out if a kill has cut it."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
