"""Read ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """The items in order, taken by a thread of their own, up to `count` of them ahead. An error is raised at its place.

    The thread starts with the first item that is asked for, so that processes forked before that know nothing of it.
    """
    source, end = iter(items), object()
    ready: deque[Future] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:  # its end waits for the item at work
        try:
            while True:
                while len(ready) < count:
                    ready.append(pool.submit(next, source, end))
                if (item := ready.popleft().result()) is end:
                    return
                yield item
        finally:
            for waiting in ready:
                waiting.cancel()
