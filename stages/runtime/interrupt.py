"""SIGINT and SIGTERM while students are trained: they stop at the next step, saved, instead of dying in it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cache.errors import ReskdError

AGAIN = "run it again: it goes on"  # what commands that begin many runs say then


class Interrupted(ReskdError):
    """A run was asked to stop, and has saved where it stands."""


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM asked to stop; a second one kills.

    One that nobody answers by Interrupted (it came too late, or with an error) has its usual effect when the context is
    left: whoever would have gone on is stopped, too.
    """
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody sends it signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    except Interrupted:
        asked.clear()
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked[0])
