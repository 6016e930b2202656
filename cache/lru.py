"""The most recently used values, by key: what one process holds open or in memory."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class LRU:
    """At most `capacity` values. Threads may share it. Each process has its own: a forked or pickled copy begins empty.

    A value that leaves is dropped and never closed, since another thread may be reading from it.
    """

    def __init__(self, capacity: int):
        self.capacity, self._process = max(1, capacity), os.getpid()
        self._lock, self._values = threading.Lock(), OrderedDict()

    def __reduce__(self):
        return LRU, (self.capacity,)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, made where it isn't held. Threads that miss at once all make it, and one value is kept."""
        if self._process != os.getpid():  # forked: a thread of the parent may have held the lock just then
            self.__init__(self.capacity)
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            if len(self._values) > self.capacity:
                self._values.popitem(last=False)
        return value
