"""What `prepare` says while it works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stages.runtime.terminal import Terminal


def say(console: Terminal, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def video_progress(title: str, total: int, console: Terminal) -> Iterator[Callable[[str | None], None]]:
    """A bar with the rate and the time that remains. Yields what is called after each video, with its error or None."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
               TextColumn("{task.fields[bad]} unreadable"))  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=total, bad=0)

        def advance(error: str | None) -> None:
            progress.update(bar, advance=1, bad=progress.tasks[bar].fields["bad"] + (error is not None))

        yield advance


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} clips/s")
