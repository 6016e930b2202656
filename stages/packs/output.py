"""Where the shards of a pack go: into its folder, or through a folder of this machine to a URL.

Both ways a shard's tar comes first, and then its rows, which commit it. So a shard is whole or not there, and a rerun on any
machine packs those that aren't. Machines that make the same pack at one URL at once make the same objects: some work is done
twice, and no more. A machine that makes another pack there is refused, or stops at its next shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from cache.differences import renewed_shards
from cache.errors import ReskdError
from stages.packs.plan import Plan, refuse_other
from stages.packs.writing import PackedClip, commit_shard
from stages.remote.outputs import make_private, working_folder
from stages.remote.url_path import Location, UrlPath
from stages.runtime.background_writer import background_writer
from stages.runtime.distributed import Ranks, rank_of_machine, ranks_of_machine
from stages.runtime.lock import locked
from stages.runtime.terminal import console
from stages.shards.index import rows_path
from stages.stream.pack_files import PACK, PackIdentity, PackManifest, read_pack, write_pack

AT_ONCE = 2  # shards of a process on the disk before they are at a URL: one is packed, one is put

Commit = Callable[[str, Iterator[PackedClip]], None]


@contextmanager
def made_in(output: Location, ranks: Ranks) -> Iterator[Path]:
    """The folder that this process makes shards in: `output`, or for a URL one of its own, which is removed at the end.

    It is locked. Raises ReskdError if another run of this machine has it.
    """
    if isinstance(output, Path):
        with locked(output) if ranks.first else nullcontext():
            yield output
        return
    base = working_folder(output)
    folder = base / str(rank_of_machine())
    make_private(base.parent)
    make_private(base)
    with locked(output, base / f"{folder.name}.lock"):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        make_private(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def begin_pack(output: Location, folder: Path, plan: Plan) -> None:
    """Check the disk space, and write the manifest of a new pack."""
    _check_room(output, folder, plan)
    print_small_clips(plan)
    stored = read_pack(output)
    for entry in renewed_shards(stored.identity.shards, plan.identity.shards) if stored else ():
        rows_path(output, entry.name).unlink(missing_ok=True)  # before the manifest: a rerun finds it missing
    if stored is None or stored.identity != plan.identity:
        try:
            write_pack(output, PackManifest(plan.identity), new=stored is None)
        except FileExistsError:  # another machine has begun at the same time
            refuse_other(output, plan.identity)


def _check_room(output: Location, folder: Path, plan: Plan) -> None:
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if isinstance(output, Path):
        if plan.bytes > free:
            raise ReskdError(f"{output}: the pack needs about {plan.bytes / 1e9:.2f} GB more, the disk has {free / 1e9:.2f} GB "
                             "free: make room, lower quality, psnr or height, or give another output")  # fmt: skip
        return
    shards = AT_ONCE * ranks_of_machine()
    needed = sum(sorted(plan.sizes, reverse=True)[:shards])
    if needed > free:
        raise ReskdError(f"{parent} has {free / 1e9:.2f} GB free, and {shards} shards, about {needed / 1e9:.2f} GB, lie there "
                         f"at once before they go to {output}: set TMPDIR to a folder on a larger disk")  # fmt: skip


def print_small_clips(plan: Plan) -> None:
    if plan.small:
        console.print(f"{len(plan.small)} clips are smaller than {plan.identity.height} px and keep their size; the first: "
                      f"{plan.small[0]}", markup=False, highlight=False, soft_wrap=True)  # fmt: skip


@contextmanager
def committer(output: Location, folder: Path, identity: PackIdentity) -> Iterator[Commit]:
    """Gives `commit(shard, clips)`, which writes a shard in `folder` and commits it; at a URL, behind the packing of the next."""
    if isinstance(output, Path):
        yield partial(commit_shard, output)
        return
    check = _manifest_check(output, identity)
    with background_writer(AT_ONCE - 1) as submit:

        def commit(shard: str, clips: Iterator[PackedClip]) -> None:
            commit_shard(folder, shard, clips)
            submit(_put_shard, output, folder, shard, check)

        yield commit


def _put_shard(url: UrlPath, folder: Path, shard: str, check: Callable[[], None]) -> None:
    tar, rows = folder / shard, rows_path(folder, shard)
    (url / shard).upload(tar)
    check()
    rows_path(url, shard).upload(rows)
    tar.unlink()
    rows.unlink()


def _manifest_check(url: UrlPath, identity: PackIdentity) -> Callable[[], None]:
    """A function that raises ReskdError if `url` doesn't have the pack of this identity any more."""
    seen: list[str | None] = []  # the ETag of a manifest with this identity

    def check() -> None:
        etag = (url / PACK).etag_or_none()
        if etag is not None and etag in seen:
            return
        stored = read_pack(url)
        if stored is None or stored.identity != identity:
            raise ReskdError(f"{url / PACK} was deleted, or changed by another run that packs something else there, while this "
                             "one packed: let one of them end, and give the other one another output")  # fmt: skip
        seen.append(etag)

    return check
