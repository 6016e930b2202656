"""A cache in a store that is made in a local folder: fetched at the start, its shards put there one by one.

The local folder has the manifest, the constants and the attributes of all groups, but the chunks of a shard only while it
is written. So the code that makes local caches makes this one, too, and its objects are the files of a local cache.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.group import load_group, load_manifest
from cache.growth import missing_work
from cache.manifest import Manifest
from cache.store import METADATA, WRITER, side_by_side
from cache.teacher_time import LOGS
from stages.remote.lease import Holder, Lease, LeaseLost, Leases, read_holder
from stages.remote.outputs import total_bytes
from stages.remote.published_root import PublishedRoot, fetch, is_log
from stages.remote.shard_commit import FENCE, fence, put_attributes, put_files, read_state
from stages.remote.url_path import UrlPath

VIEWS = ("frames", "box", "flip", "valid")  # arrays that a target is added beside
FIRST_LOOK, LAST_LOOK = 0.5, 15.0  # seconds between two looks at the shards of others, which grow


@dataclass
class Claim:
    """A shard that this process writes. `seen`: the ETag of its attributes; `files`: those that are committed.

    `works`: how many commits are still to come."""

    lease: Lease
    seen: str | None
    files: frozenset[str]
    works: int = 1


class PublishedCache:
    """The cache at `url`, made in `folder`. `writer`: names the writers of this folder, the same after a restart."""

    def __init__(self, url: UrlPath, folder: Path, writer: str, rank: int):
        self.url, self.folder, self.rank = url, folder, rank
        self.root = PublishedRoot(url, folder)
        self.left: dict[str, str] = {}  # shards that others write, or have written: what is known of them
        self.writer, self._leases = writer, Leases(writer)
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()  # one thread claims, another one publishes

    def pull(self) -> None:
        """Fetch what the store has of the root, and the attributes of all groups. Raises ReskdError for something else."""
        self.root.pull()
        if (self.folder / METADATA).exists():
            self.pull_groups([entry.name for entry in load_manifest(self.folder).identity.shards])

    def pull_groups(self, shards: Iterable[str]) -> None:
        """Fetch the attributes of the groups that are committed."""

        def pull(shard: str) -> None:
            state = read_state(self.url / shard / METADATA)
            if state is not None:
                self._keep(shard, state[0])

        side_by_side(self.url, pull, shards)

    def pull_missing(self, manifest: Manifest) -> None:
        """Fetch the attributes of the groups that others have committed, and the logs of their teacher time."""
        self.pull_groups([e.name for e in manifest.identity.shards if missing_work(self.folder, manifest, e.name)])
        logs = [path.name for path in self.url.iterdir() if is_log(path.name)]

        def pull_log(name: str) -> None:
            with suppress(FileNotFoundError):  # another run, which has finished the cache, has removed it
                (self.folder / name).write_bytes((self.url / name).read_bytes())

        side_by_side(self.url, pull_log, logs)

    def remove_groups(self, shards: Iterable[str]) -> None:
        """Delete the groups of shards that are to be made anew, the attributes first."""
        for shard in shards:
            for name in [METADATA, *(self.url / shard).files()]:
                (self.url / shard / name).unlink()

    def put_logs(self) -> None:
        """Put the logs of this rank's teacher time, which a killed run has spent, too."""
        for file in self.folder.glob(LOGS.replace("*", f"{self.rank}-*")):
            (self.url / file.name).upload(file)

    def remove_logs(self) -> None:
        """Remove the logs of the teacher time. The manifest must have their sum already."""
        for path in self.url.iterdir():
            if is_log(path.name):
                path.unlink()

    def remove_dead_leases(self, manifest: Manifest) -> None:
        """Remove what writers left that were killed just after a commit. All shards must be finished."""

        def remove(shard: str) -> None:
            file = self.url / shard / WRITER
            found = read_holder(file)
            if found is not None and self._is_dead(found[0]):
                file.unlink()

        side_by_side(self.url, remove, [entry.name for entry in manifest.identity.shards])

    def claim(self, manifest: Manifest, shard: str, views: range, targets: Sequence[str]) -> bool:
        """Take the lease of a shard to write these views of these targets. False: it is left to another writer."""
        with self._lock:
            if shard in self._claims:
                self._claims[shard].works += 1
                return True
        found = self._leases.take(self.url / shard / WRITER)
        if isinstance(found, Holder):
            self.left[shard] = f"a process on {found.host} writes it"
            return False
        file = self.url / shard / METADATA
        state = fence(file) if found.taken_over else read_state(file)
        if state is not None:
            self._keep(shard, state[0])
        if (views, tuple(targets)) not in missing_work(self.folder, manifest, shard):
            self._leases.release(found)
            self.left[shard] = "another process has written it"
            return False
        group = load_group(self.folder, shard)
        claim = Claim(found, state and state[1], frozenset(group["files"] if group else ()))
        with self._lock:
            self._claims[shard] = claim
        return True

    def prepare(self, shard: str) -> None:
        """Fetch what is needed to add to a committed group: its arrays' metadata, and its views."""
        claim = self._claim_of(shard)
        files = {f"{file.partition('/')[0]}/{METADATA}" for file in claim.files}
        files |= {file for file in claim.files if file.partition("/")[0] in VIEWS}
        side_by_side(self.url, lambda name: fetch(self.url, self.folder, f"{shard}/{name}"), files)

    def publish(self, shard: str) -> None:
        """Put the new files of a group that was committed in the folder, and commit it. Its chunks leave the folder.

        Raises LeaseLost where another writer has taken over: then nothing is committed.
        """
        claim, folder = self._claim_of(shard), self.folder / shard
        files = load_group(self.folder, shard)["files"]
        arrays = sorted(f"{file.parent.name}/{METADATA}" for file in folder.glob(f"*/{METADATA}"))
        put_files(folder, self.url / shard, [*sorted({*files} - claim.files), *arrays], claim.lease)
        claim.seen = put_attributes(self.url / shard / METADATA, (folder / METADATA).read_bytes(), claim.seen)
        claim.files = frozenset(files)
        for array in folder.iterdir():
            if array.is_dir():
                shutil.rmtree(array)
        self.put_logs()
        with self._lock:
            claim.works -= 1
            if not claim.works:
                del self._claims[shard]
        if not claim.works:
            self._leases.release(claim.lease)

    def give_up(self, shard: str) -> None:
        """Forget what was computed of a shard that another writer has taken over."""
        with self._lock:
            claim = self._claims.pop(shard)
        self._leases.release(claim.lease)
        shutil.rmtree(self.folder / shard)
        self.left[shard] = "another process has taken over"
        self.pull_groups([shard])

    def wait_for_others(self) -> list[str]:
        """The shards that others wrote, as soon as one of them is free, with its attributes fetched."""
        shards, self.left, pause = list(self.left), {}, FIRST_LOOK
        while shards and all(map(self._is_busy, shards)):
            time.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)
        self.pull_groups(shards)
        return shards

    def size(self, manifest: Manifest) -> int:
        """Bytes of the objects that the attributes list, and of the attributes. Nothing is asked of the store."""
        groups = [load_group(self.folder, entry.name) for entry in manifest.identity.shards]
        listed = [size for group in groups for size, _ in group["files"].values()]
        return sum(listed) + total_bytes(self.folder)

    def close(self) -> None:
        """Let others have the shards that aren't committed."""
        self._leases.close()

    def _is_busy(self, shard: str) -> bool:
        found = read_holder(self.url / shard / WRITER)
        return found is not None and not self._is_dead(found[0])

    def _is_dead(self, holder: Holder) -> bool:
        """Whether a holder that is not one of this process's leases has ended."""
        return holder.writer == self._leases.writer or holder.is_stale()

    def _claim_of(self, shard: str) -> Claim:
        with self._lock:
            if shard not in self._claims:
                raise LeaseLost(f"{self.url / shard}: another writer has taken over: run cache-teacher again")
            return self._claims[shard]

    def _keep(self, shard: str, attributes: bytes) -> None:
        """Write a group's attributes into the folder, unless they say that nothing is committed."""
        if attributes.strip() == FENCE:
            return
        file = self.folder / shard / METADATA
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(attributes)
