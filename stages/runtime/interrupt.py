"""SIGINT and SIGTERM: a training stops after the current step and saves its state; processes that start are left alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cache.errors import ReskdError

RUN_AGAIN = "run it again: it goes on"  # the advice of commands that start several runs


class Interrupted(ReskdError):
    """A run was asked to stop by a signal, and has saved its state. `exit_status`: that of a program that ends by it."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_status = 128 + number


@contextmanager
def sigint_waits() -> Iterator[None]:
    """A Ctrl-C waits until the end of the context. For a process that starts in it, it waits on: the process inherits this.

    A worker would otherwise answer a Ctrl-C at its start with a traceback, before it can say that it ignores it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupted_by_sigterm(go_on: str, before: Any = None) -> Iterator[None]:
    """A SIGTERM raises Interrupted, so that contexts clean up. `before`: the handler afterwards; None: the present one."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(f"stopped by SIGTERM; {go_on}", number)

    try:
        present = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, present if before is None else before)


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Gives a function that tells which of SIGINT and SIGTERM has come; 0: none. The second signal ends the process at once.

    If the caller doesn't raise Interrupted after a signal (it came too late, or another error was raised), the signal has
    its usual effect at the end of the context. So the code after the context is stopped too.
    """
    received = []

    def receive(number, frame):
        received.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        old = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread gets signals
        yield lambda: 0
        return
    try:
        yield lambda: received[0] if received else 0
    except Interrupted:
        received.clear()
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if received:
            handler = old[received[0]]
            if callable(handler):  # called here: a signal may be answered in a destructor, where its exception is lost
                handler(received[0], None)
            else:
                signal.raise_signal(received[0])
