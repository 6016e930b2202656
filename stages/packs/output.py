"""Where the shards of a pack go: into its folder, or through a folder of this machine to a URL.

Both ways a shard's tar comes first, and then its rows, which commit it. So a shard is whole or not there, and a rerun on any
machine packs those that aren't. Machines that make the same pack at one URL at once make the same objects: some work is done
twice, and no more. If their pictures differ (by their versions of a codec), a shard is whole of one of them, and the other one
leaves it, or stops. A machine that makes another pack there is refused, or stops at its next shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from cache.differences import renewed_shards
from cache.errors import ReskdError
from cache.store import side_by_side
from stages.packs.plan import Plan, refuse_other
from stages.packs.writing import PackedClip, commit_shard
from stages.remote.outputs import MAX_PUT, make_private, put_known, working_folder
from stages.remote.probe import check_conditional_puts
from stages.remote.store import Changed
from stages.remote.url_path import Location, UrlPath
from stages.runtime.background_writer import background_writer
from stages.runtime.distributed import Ranks, rank_of_machine, ranks_of_machine
from stages.runtime.lock import locked
from stages.runtime.terminal import console
from stages.shards.index import rows_path
from stages.stream.pack_files import PACK, PackIdentity, PackManifest, read_committed_shard, read_pack, write_pack

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
        if rank_of_machine() == 0:
            _remove_folders_of_more_ranks(base)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        make_private(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_folders_of_more_ranks(base: Path) -> None:
    """Remove the folders that no rank of this run has: those of a killed run that had more."""
    for folder in base.iterdir():
        if folder.name.isdecimal() and int(folder.name) >= ranks_of_machine():
            with suppress(Timeout), FileLock(base / f"{folder.name}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def begin_pack(output: Location, folder: Path, plan: Plan) -> None:
    """Check the disk space, and write the manifest of a new pack. Raises StoreError for a store without conditional puts."""
    _check_room(output, folder, plan)
    print_small_clips(plan)
    stored = read_pack(output)
    for entry in renewed_shards(stored.identity.shards, plan.identity.shards) if stored else ():
        rows_path(output, entry.name).unlink(missing_ok=True)  # before the manifest: a rerun finds it missing
    if stored is None and isinstance(output, UrlPath):
        check_conditional_puts(output)
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
    if max(plan.sizes, default=0) > MAX_PUT:
        raise ReskdError(f"{output}: a shard would have about {max(plan.sizes) / 2**30:.1f} GiB, and a store takes "
                         f"{MAX_PUT / 2**30:.0f} GiB in one conditional request: lower quality, psnr or height, or pack into a "
                         "folder, and copy it")  # fmt: skip
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
def committer(output: Location, folder: Path, identity: PackIdentity, shards: Sequence[str]) -> Iterator[Commit]:
    """Gives `commit(shard, clips)`, which writes one of `shards` in `folder` and commits it; at a URL, behind the packing of the
    next.
    """
    if isinstance(output, Path):
        yield partial(commit_shard, output)
        return
    check = _manifest_check(output, identity)
    seen = dict(zip(shards, side_by_side(output, lambda shard: (output / shard).etag_or_none(), shards), strict=True))
    with background_writer(AT_ONCE - 1) as submit:

        def commit(shard: str, clips: Iterator[PackedClip]) -> None:
            commit_shard(folder, shard, clips)
            submit(_put_shard, output, folder, shard, seen[shard], check)

        yield commit


def _put_shard(url: UrlPath, folder: Path, shard: str, seen: str | None, check: Callable[[], None]) -> None:
    """Put a shard, if no other process has committed it. `seen`: the ETag of its tar when this run began.

    Raises Changed if another process has put another tar since then, and has not committed it.
    """
    check()
    if read_committed_shard(url, shard) is None and not _put_tar_and_rows(url, folder, shard, seen, check):
        raise Changed(f"{url / shard} isn't what this run packs: another run, or one of another version, packs there, too. Let "
                      "one of them end, then run `pack` again")  # fmt: skip
    (folder / shard).unlink()
    rows_path(folder, shard).unlink()


def _put_tar_and_rows(url: UrlPath, folder: Path, shard: str, seen: str | None, check: Callable[[], None]) -> bool:
    """Whether the shard is committed then, by this process or by another one, with its tar and its rows of the same one."""
    tar, rows = url / shard, rows_path(url, shard)
    if rows.is_file():  # of a tar that is gone
        rows.unlink()
    etag = put_known(tar, (folder / shard).read_bytes(), seen)
    check()
    if etag is None:
        return read_committed_shard(url, shard) is not None
    rows_are_ours = put_known(rows, rows_path(folder, shard).read_bytes(), None) is not None
    tar_is_ours = tar.etag_or_none() == etag
    if rows_are_ours != tar_is_ours:  # two processes took turns: what is there is of neither
        rows.unlink()
    return rows_are_ours == tar_is_ours


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
