"""A second process, for work that needs nothing of the first one's work."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait

from cache.errors import ReskdError, StoreError
from stages.runtime.fresh_process import start_by_default
from stages.runtime.interrupt import RUN_AGAIN, sigint_waits
from stages.runtime.terminal import console


@contextmanager
def beside(task: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Run `task` silently in a second process. Gives a function that waits for its end and raises the task's error.

    The task must be known by its module's name, and keep its results in files. A Ctrl-C is answered by this process. If the
    context ends before the task, the task gets a SIGTERM, and the context waits until it has ended; if this process is
    killed, the task ends too.
    """
    context = get_context("spawn")  # a fork of a process with threads may hang
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(pickle.dumps(task), there))
    with sigint_waits():
        process.start()
    there.close()

    def join() -> None:
        try:
            error = here.recv()
        except EOFError:
            process.join()
            raise ReskdError(f"the second process has ended (exit status {process.exitcode}); {RUN_AGAIN}") from None
        process.join()
        if error:
            raise error

    try:
        yield join
    finally:
        process.terminate()
        process.join()
        here.close()


def _work(pickled: bytes, connection: Connection) -> None:
    """`pickled`: the task; to read it imports much, and meanwhile this process ends with its parent already."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    console.quiet = True
    start_by_default()
    try:
        pickle.loads(pickled)()
    except ReskdError as error:
        connection.send((StoreError if isinstance(error, StoreError) else ReskdError)(str(error)))
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
    else:
        connection.send(None)


def _end_with_parent() -> None:
    """What is trained since the last checkpoint is lost: a killed command loses as much."""
    wait([parent_process().sentinel])
    os._exit(1)
