"""One decoding process and its parent's end of it."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any

import torch

from cache.errors import ReskdError
from stages.remote.store import may_fork
from stages.runtime.fresh_process import fresh_context
from stages.runtime.interrupt import sigint_waits
from stages.stream.clip_at_work import WorkNote, become_worker, set_suspects
from stages.stream.config import ClipLimits
from stages.stream.memory_file import receive_value, send_small, send_value

# begin(first, step) gives a function that makes batch number `first` of its item, then `first + step`, and so on.
Begin = Callable[[int, int], Callable[[Any], Any]]
ENDED = object()  # comes after the last answer of a worker
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ETOOMANYREFS)


class Large:
    """An item that travels in a file in memory: in a pipe, its sender would wait until the worker has time to read it."""


@dataclass(frozen=True)
class Bug:
    """An error in a worker that no user can mend."""

    text: str


@dataclass(eq=False)
class Worker:
    process: BaseProcess
    connection: Connection
    note: WorkNote
    number: int  # of the worker
    tasks: deque[tuple[int, Any]] = field(default_factory=deque)  # numbers and items of batches that it has to make
    since: float = field(default_factory=time.monotonic)  # when it gave its last answer, or got the first task
    stopped: bool = False  # the parent has killed it, because it didn't answer

    def send(self, task: tuple[int, Any], suspects: Mapping[str, str | None]) -> None:
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)
        send = send_value if isinstance(task[1], Large) else send_small
        try:
            send(self.connection, (task[1], dict(suspects)))
        except OSError as error:  # it has ended, and `ENDED` comes
            if error.errno in EXHAUSTED:
                raise ReskdError(f"clips can't be sent to a decoding process ({error.strerror}): allow more open files (ulimit "
                                 "-n), or lower loader.workers, loader.prefetch or batch_size") from error  # fmt: skip

    def seconds_of_silence(self) -> float:
        """How long it has not moved, though it has work."""
        return time.monotonic() - max(self.since, self.note.moved.value / 1e9) if self.tasks else 0.0

    def end(self) -> None:
        """Ends it at once: it holds nothing that would be lost. Then its thread closes the connection."""
        self.process.kill()


def start_worker(
    begin: Begin, number: int, first: int, step: int, limits: ClipLimits, answers: SimpleQueue, pin: bool
) -> Worker:
    """Start a worker. A thread puts (worker, answer, bytes of the answer) into `answers`, and at last `ENDED`."""
    context = multiprocessing.get_context() if may_fork() else fresh_context(__name__, "stages.stream.clips")
    here, there = context.Pipe()
    note = WorkNote.new(context)
    process = context.Process(target=_work, args=(begin, first, step, there, note, limits), daemon=True)
    with sigint_waits():
        process.start()
    there.close()
    worker = Worker(process, here, note, number)
    # At this process's end, multiprocessing asks daemons to end and waits for them. A stopped one would never end.
    Finalize(worker, process.kill, exitpriority=10)
    device = torch.cuda.current_device() if pin else None
    threading.Thread(target=_receive, args=(worker, answers, device), name="receive-batches", daemon=True).start()
    return worker


def _receive(worker: Worker, answers: SimpleQueue, device: int | None) -> None:
    """Hand on a worker's answers, in memory that is pinned for `device`, until the worker ends."""
    if device is not None:
        torch.set_num_threads(1)  # of this thread: pinning copies
        torch.cuda.set_device(device)
    try:
        while True:
            answer, size = receive_value(worker.connection)
            answers.put((worker, pinned(answer) if device is not None else answer, size))
            del answer
    except (EOFError, ConnectionError):
        answers.put((worker, ENDED, 0))
    except OSError as error:
        failure = ReskdError(f"a batch can't be received from a decoding process ({error.strerror or error}): allow more "
                             "open files (ulimit -n), or lower loader.workers or loader.prefetch")  # fmt: skip
        answers.put((worker, failure, 0))
    except Exception:
        answers.put((worker, Bug(traceback.format_exc()), 0))
    finally:
        worker.connection.close()


def pinned(batch: Any) -> Any:
    """The batch in pinned memory, if it knows how."""
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch


def _work(begin: Begin, first: int, step: int, connection: Connection, note: WorkNote, limits: ClipLimits) -> None:
    """What a worker does: it makes a batch of each item that comes, and sends it back. An error is sent as a value."""
    gc.freeze()  # what the parent has left behind isn't collected here: its decoders' threads don't exist in a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    become_worker(note, limits)
    fetch = None
    while True:
        try:
            (item, suspects), _ = receive_value(connection)
        except (EOFError, OSError):
            return
        set_suspects(suspects)
        note.write(b"")
        try:
            fetch = fetch or begin(first, step)
            answer = fetch(item)
        except ReskdError as error:
            answer = error
        except Exception:
            answer = Bug(traceback.format_exc())
        try:
            send_value(connection, answer)
        except ConnectionError:  # the parent has ended
            return
        except (OSError, MemoryError) as error:
            send_small(connection, ReskdError(f"a decoding process can't send its batch ({error}): lower loader.workers or "
                                              "loader.prefetch, or take smaller batches"))  # fmt: skip
        except Exception:
            send_small(connection, Bug(traceback.format_exc()))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
