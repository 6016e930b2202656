"""What `prepare` says while it works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console


def say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def video_progress(title: str, total: int) -> Iterator[Callable[[str | None], None]]:
    """A bar with the rate and the time that remains. Yields what is called after each video, with its error or None."""
    bad = 0
    with progress_bar("clips") as bar:
        task = bar.add_task(title, total=total, rate=0.0, note="")

        def advance(error: str | None) -> None:
            nonlocal bad
            bad += error is not None
            bar.update(task, advance=1, rate=bar.tasks[0].speed or 0.0, note=f"{bad} unreadable" if bad else "")

        yield advance
