"""Standard error that goes nowhere for a while: decord's library writes to it ("Failed to seek"), and then goes on."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_users = 0  # threads that want silence
_copy = -1  # of the file descriptor, while there are users


@contextmanager
def silent_stderr() -> Iterator[None]:
    """What this process writes to the file descriptor 2 is lost meanwhile, that of other threads too."""
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _users, _copy
    with _lock:
        if _users == 0:
            try:
                _copy = os.dup(2)
            except OSError:  # it is closed: nothing can reach it
                _copy = -1
            else:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
        _users += 1


def _end() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            _restore()


def _restore() -> None:
    global _copy
    if _copy >= 0:
        os.dup2(_copy, 2)
        os.close(_copy)
        _copy = -1


def _after_fork() -> None:
    """In a child, no thread of the parent goes on, and none gives back what it took."""
    global _lock, _users
    _lock, _users = threading.Lock(), 0
    _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
