"""A cache of the most recently used values: the files that a process holds open, and the arrays it keeps in memory."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class LRU:
    """At most `capacity` values by key. Threads may share an LRU. A forked or pickled copy begins empty in its process.

    A value that is dropped is never closed, since another thread may still read from it.
    """

    def __init__(self, capacity: int):
        self.capacity, self._process = max(1, capacity), os.getpid()
        self._lock, self._values = threading.Lock(), OrderedDict()

    def __reduce__(self):
        return LRU, (self.capacity,)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`; `make` is called if it is absent. Several threads may make it at once; one value is kept."""
        if self._process != os.getpid():  # forked: the copied lock may be locked forever by a thread of the parent
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
