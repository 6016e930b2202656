"""Who writes a shard of a cache in a store: an object beside its group, which the writer creates, renews and deletes.

A lease saves double work. It is not what keeps a commit whole: that are the conditional puts of `shard_commit.py`, so a
wrong clock does no harm.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace

from cache.errors import ReskdError, StoreError
from stages.remote.store import Changed
from stages.remote.url_path import UrlPath

STALE_AFTER = 300.0  # seconds without a renewal, by the writers' clocks, after which another writer takes over
RENEW_EVERY = 60.0  # seconds


class LeaseLost(StoreError):
    """Another writer has taken over the shard. What this one computed is not committed."""


@dataclass(frozen=True)
class Holder:
    """The content of the object. `writer`: the same after a restart on this machine; `token`: of one lease alone."""

    writer: str
    token: str
    host: str
    time: float  # Unix time of the last renewal

    def is_stale(self) -> bool:
        return time.time() - self.time > STALE_AFTER

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def read_holder(file: UrlPath) -> tuple[Holder, str] | None:
    """Who holds the lease `file`, and the object's ETag; None: nobody."""
    try:
        data, etag = file.read_with_etag()
        return Holder(**json.loads(data)), etag
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        if isinstance(error, ReskdError):
            raise
        raise ReskdError(f"{file} isn't a writer's object: see who put it there, and delete it") from error


class Lease:
    """A lease that this process holds. `taken_over`: from a writer that ended without a commit, or that is very slow."""

    def __init__(self, file: UrlPath, holder: Holder, etag: str, taken_over: bool):
        self.file, self.holder, self.taken_over = file, holder, taken_over
        self._etag, self._lock, self._ended = etag, threading.RLock(), False

    def is_held(self) -> bool:
        """Whether the store still names this lease."""
        with self._lock:
            found = read_holder(self.file)
            if found is None or found[0].token != self.holder.token:
                return False
            self._etag = found[1]
            return True

    def check(self) -> None:
        """Raises LeaseLost."""
        if not self.is_held():
            raise LeaseLost(f"{self.file.parent}: another writer has taken over this shard")

    def renew(self) -> None:
        """Say that the writer lives. Does nothing where the lease is lost: the writer sees that at its commit."""
        with self._lock:
            if self._ended:
                return
            holder = replace(self.holder, time=time.time())
            try:
                self._etag = self.file.replace(holder.to_bytes(), self._etag)
            except (Changed, FileNotFoundError):
                self._ended = not self.is_held()  # the answer to our own put may have been lost

    def release(self) -> None:
        with self._lock:
            self._ended = True
            if self.is_held():
                self.file.unlink()


def take_lease(file: UrlPath, writer: str) -> Lease | Holder:
    """The lease `file`, or who holds it.

    It is taken over from a holder that doesn't renew it, and from an earlier process of the same `writer`, which is dead.
    """
    mine = Holder(writer, secrets.token_hex(8), socket.gethostname(), time.time())
    while True:
        try:
            return Lease(file, mine, file.write_new(mine.to_bytes()), False)
        except FileExistsError:
            found = read_holder(file)
        if found is None:
            continue  # it was released
        holder, etag = found
        if holder.token == mine.token:  # the answer to our put was lost
            return Lease(file, mine, etag, False)
        if holder.writer != writer and not holder.is_stale():
            return holder
        try:
            return Lease(file, mine, file.replace(mine.to_bytes(), etag), True)
        except (Changed, FileNotFoundError):
            continue  # another writer was faster


class Leases:
    """The leases of a process. A thread renews them."""

    def __init__(self, writer: str):
        self.writer, self._held, self._end = writer, set(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)

    def take(self, file: UrlPath) -> Lease | Holder:
        found = take_lease(file, self.writer)
        if isinstance(found, Lease):
            self._held.add(found)
            if not self._thread.is_alive():
                self._thread.start()
        return found

    def release(self, lease: Lease) -> None:
        self._held.discard(lease)
        lease.release()

    def close(self) -> None:
        """Release all. Where the store doesn't answer, the leases get stale."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        for lease in list(self._held):
            try:
                self.release(lease)
            except ReskdError:
                continue

    def _renew(self) -> None:
        while not self._end.wait(RENEW_EVERY):
            for lease in list(self._held):
                try:
                    lease.renew()
                except ReskdError:  # it is tried again; a lease that gets stale meanwhile is lost
                    continue
