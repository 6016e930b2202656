"""The logs of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from cache.errors import ReskdError
from cache.json_file import parse_json, read_limited
from cache.store import naming, write_atomically
from stages.config.file import flat
from stages.runtime.terminal import console
from stages.runtime.utf8_path import utf8_path


class RunLog:
    """Appends rows to metrics.jsonl and their numbers to TensorBoard. Rows after `step`, where the run resumes, are cut."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.file = self.path.open("a", buffering=1)
        self.board: SummaryWriter | None = None
        self.open_files = ExitStack()
        threading.excepthook = _print_thread_error
        with self._board_may_fail():
            board_folder = folder / "tensorboard"
            board_folder.mkdir(exist_ok=True)
            name = self.open_files.enter_context(utf8_path(board_folder))
            self.board = SummaryWriter(name, purge_step=step + 1)

    def row(self, kind: str, step: int, values: dict) -> None:
        """Append the row `{"kind": kind, "step": step, **values}`. TensorBoard gets nested numbers as kind/a/b."""
        with naming(self.path):
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        with self._board_may_fail():
            for name, value in flat(values, f"{kind}/", "/").items():
                if isinstance(value, (int, float)) and self.board is not None:
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        with self._board_may_fail():
            if self.board is not None:
                self.board.close()
        self.open_files.close()

    @contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """A training goes on without TensorBoard: metrics.jsonl has the same numbers."""
        try:
            yield
        except Exception as error:
            self.board = None
            console.print(f"[yellow]warning[/] {self.path.parent / 'tensorboard'}: no more TensorBoard logs "
                          f"({type(error).__name__}: {error}). metrics.jsonl has all numbers", soft_wrap=True)  # fmt: skip


def _print_thread_error(error: threading.ExceptHookArgs) -> None:
    """Print a thread's error as usual, but not that of TensorBoard's writer: its next row raises it once more."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


def read_metrics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, [] without such a file. The last line is left out if a kill has cut it.

    Raises ReskdError for a line that is no JSON object.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        rows = [
            parse_json(line, nan=True) for line in read_limited(path).splitlines(keepends=True) if line.endswith(b"\n")
        ]
        if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
            raise ValueError("a line is no row of a training")
    except ValueError as error:
        raise ReskdError(
            f"{path} can't be read ({error}): copy the run again, or begin it anew with --overwrite"
        ) from error
    return rows
