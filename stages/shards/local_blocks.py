"""Blocks of a data set in a store that lie in a local folder, as decoding processes read them.

A block is 64 rows of a shard: one range of bytes of the tar. One process of the machine puts blocks into the folder and
deletes them: see stages/stream/block_cache.py. A file's name is that of one content: a tar that is replaced under its name
can't be taken for the one that the index names. Each clip is checked when it is read, as those of local tars are.

<folder>/<digest of the shard>.<block>   the bytes from the header of the block's first video to the end of the last one
<folder>/<sha256>.rows.json              the rows of a shard
<folder>/failed.json                     why no more blocks come
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cache.errors import ReskdError, StoreError
from cache.view import BLOCK
from stages.shards.tar_file import FilePart, TarFile
from stages.shards.tar_scan import HEADER

if TYPE_CHECKING:
    from stages.shards.dataset import Dataset

FAILED = "failed.json"
POLL = 0.005  # seconds between two looks for a block
LOOKS_A_SECOND = round(1 / POLL)


class BlockPart(TarFile):
    """A block's file. Its places are those in the whole tar, where it begins at the byte `start`."""

    def __init__(self, path: str, start: int):
        super().__init__(path)
        self.start = start

    def read(self, size: int, offset: int) -> bytes:
        return super().read(size, offset - self.start)


@dataclass(frozen=True)
class LocalBlocks:
    """The folder, and the process that fills it. Small when pickled."""

    folder: Path
    filler: int  # its process number

    def block_file(self, data: Dataset, shard: str, block: int) -> str:
        """Its path, as a text: to make a Path of it would take as long as to open the file."""
        return f"{self.folder}/{data.content_name(shard)}.{block}"

    def wait_for(self, data: Dataset, rows: Iterable[tuple[str, int]], waiting: Callable[[], None]) -> None:
        """Wait until the blocks of these rows, (shard, row), are there. `waiting` is called about once a second.

        Raises what the filling process failed with: it gives up when the store doesn't answer in time. Raises StoreError if
        that process has ended.
        """
        blocks = {(shard, row // BLOCK) for shard, row in rows}
        files = {self.block_file(data, shard, block) for shard, block in blocks}
        looks = 0
        while files := {file for file in files if not os.path.exists(file)}:
            if (self.folder / FAILED).exists():
                self._raise_failure()
            looks += 1
            if looks % LOOKS_A_SECOND == 0:
                waiting()
                if not psutil.pid_exists(self.filler):
                    raise StoreError(f"{data.base}: the process that reads its blocks into {self.folder} (pid {self.filler}) "
                                     "has ended. Run the command again")  # fmt: skip
            time.sleep(POLL)

    def read(self, data: Dataset, shard: str, row: int) -> bytes:
        """The encoded video of a row, from its block. What can't be read here is read from the store.

        A block that isn't what it was is fetched once more. Raises ReskdError if the store's tar differs from the index."""
        block = row // BLOCK
        file, start = self.block_file(data, shard, block), block_span(data, shard, block)[0]
        try:
            return data.read_from(BlockPart(file, start), shard, row)
        except OSError:
            return data.without_local().read(shard, row)
        except ReskdError:
            content = data.fetch_block(shard, block)
            self.write(Path(file), content)
            return data.read_from(FilePart(content, start), shard, row)

    def rows(self, digest: str) -> bytes | None:
        """A file of rows that has this sha256; None if it isn't there."""
        with contextlib.suppress(OSError):
            content = self.rows_file(digest).read_bytes()
            return content if hashlib.sha256(content).hexdigest() == digest else None
        return None

    def rows_file(self, digest: str) -> Path:
        return self.folder / f"{digest}.rows.json"

    def write(self, file: Path, content: bytes) -> None:
        """Write a file whole. It isn't synced: what a power cut leaves of it fails its check. Raises ReskdError: a full disk."""
        partial = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            partial.write_bytes(content)
            os.replace(partial, file)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise ReskdError(f"{file}: can't be written ({error.strerror or error}): give loader.local.path a folder with more "
                             "room, or lower loader.local.budget") from error  # fmt: skip

    def fail(self, error: ReskdError) -> None:
        """Tell all processes why no more blocks come."""
        said = {"store": isinstance(error, StoreError), "message": str(error)}
        partial = self.folder / f"{FAILED}.partial"
        with contextlib.suppress(OSError):  # on a full disk an empty file says it, too
            (self.folder / FAILED).touch()
            partial.write_text(json.dumps(said))
            os.replace(partial, self.folder / FAILED)

    def _raise_failure(self) -> None:
        time.sleep(0.2)  # the reason follows the file's name
        try:
            said = json.loads((self.folder / FAILED).read_text())
        except (OSError, ValueError):
            raise ReskdError(
                f"{self.folder}: can't be written; give loader.local.path a folder with more room"
            ) from None
        raise (StoreError if said["store"] else ReskdError)(said["message"])


def block_count(data: Dataset, shard: str) -> int:
    return -(-data.entry(shard).clips // BLOCK)


def block_span(data: Dataset, shard: str, block: int) -> tuple[int, int]:
    """Where a block begins and ends in its tar, bytes: its first video's header is in it, too."""
    rows = data.rows(shard)
    last = rows[min((block + 1) * BLOCK, len(rows)) - 1]
    return rows[block * BLOCK].offset - HEADER, last.offset + last.size
