"""The commit of a shard's group in a store, which has no rename: chunks first, the attributes last.

Two rules keep a commit whole, whatever a late writer does, such as one that slept while another took over its shard:

- Whoever takes over a shard changes its attributes' object first (`fence`). The attributes of the earlier writer are put
  only in place of what that writer has seen (create only, or by ETag), so from here on it can't commit.
- A chunk is created; one that is there is replaced only by who holds the lease, and only if it is still the one that was
  there when the lease was held, and not the same already. So a late writer can't change the chunks of a commit, but for one
  case, which readers notice: it slept between its check and its put, and the other writer put the very bytes that were there.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.errors import StoreError
from cache.group import UNCOMMITTED, group_node
from cache.store import side_by_side
from stages.remote.lease import Lease, LeaseLost
from stages.remote.store import Changed
from stages.remote.url_path import UrlPath

UPLOADS = 8  # at once; each holds a whole chunk in memory
FENCE = group_node(UNCOMMITTED)


def read_state(file: UrlPath) -> tuple[bytes, str] | None:
    """The bytes of a group's attributes and their ETag; None: no object."""
    try:
        return file.read_with_etag()
    except FileNotFoundError:
        return None


def fence(file: UrlPath) -> tuple[bytes, str]:
    """Change the object of a group's attributes but not what they say, so that an earlier writer can't commit any more.

    An uncommitted group gets attributes that say so. Returns the bytes and their ETag.
    """
    while True:
        state = read_state(file)
        try:
            if state is None:
                return FENCE, file.write_new(FENCE)
            data, etag = state
            changed = data + b"\n"  # JSON says the same, and no earlier content, so no earlier ETag, comes back
            return changed, file.replace(changed, etag)
        except (FileExistsError, Changed, FileNotFoundError):
            continue  # the earlier writer has just committed, or a third one has taken over


def put_files(local: Path, url: UrlPath, names: Iterable[str], lease: Lease) -> None:
    """Put files below `local` at the same places below `url`, and then compare their ETags with those of these puts.

    Raises LeaseLost if another writer has taken over, and StoreError if the store has something else than was put.
    """
    names = list(names)
    with ThreadPoolExecutor(UPLOADS) as pool:
        etags = list(pool.map(lambda name: _put(url / name, (local / name).read_bytes(), lease), names))
    found = side_by_side(url, lambda name: (url / name).etag_or_none(), names)
    for name, put, there in zip(names, etags, found, strict=True):
        if put != there:
            lease.check()
            what = "it is gone" if there is None else f"its ETag is {there}, that of the put was {put}"
            raise StoreError(f"{url / name} isn't what was put there a moment ago ({what}), so its shard is not committed: see "
                             "who else writes or deletes there, and run cache-teacher again")  # fmt: skip


def put_attributes(file: UrlPath, data: bytes, seen: str | None) -> str:
    """The commit: put the attributes in place of those with the ETag `seen`; None: create them. Returns their ETag.

    Raises LeaseLost if others are there.
    """
    try:
        return file.write_new(data) if seen is None else file.replace(data, seen)
    except (FileExistsError, Changed, FileNotFoundError):
        state = read_state(file)
        if state is not None and state[0] == data:  # the answer to our put was lost, or another has committed the same
            return state[1]
        raise LeaseLost(f"{file.parent}: another writer has committed this shard, or has taken it over") from None


def _put(file: UrlPath, data: bytes, lease: Lease) -> str:
    while True:
        try:
            return file.write_new(data)
        except FileExistsError:
            etag = file.etag_or_none()  # before the check: what comes after it isn't replaced
            lease.check()
        try:
            if etag is not None:
                return file.replace(data, etag)
        except (Changed, FileNotFoundError):
            continue
