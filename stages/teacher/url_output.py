"""A cache that stage one makes at a URL: the folder of this machine that it is made in, and who does what among the ranks."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.create import create_cache
from cache.differences import renewed_shards
from cache.errors import ReskdError
from cache.finalise import finalise
from cache.group import load_manifest
from cache.manifest import Manifest
from cache.reduction import Constants
from cache.statistics import add_channel_std
from cache.store import METADATA
from stages.remote.local_copy import naming_url
from stages.remote.outputs import make_private, working_folder
from stages.remote.probe import check_conditional_puts
from stages.remote.published_cache import PublishedCache
from stages.remote.published_root import is_log
from stages.remote.url_path import UrlPath
from stages.runtime.distributed import Ranks, rank_of_machine
from stages.runtime.lock import locked
from stages.runtime.terminal import console
from stages.stream.all_views import ShardWork
from stages.teacher.config import CacheConfig
from stages.teacher.identity import in_todays_names
from stages.teacher.plan import missing_of_shards

WRITER_ID = "writer"  # a file beside the local folder


@contextmanager
def made_locally(
    config: CacheConfig, ranks: Ranks, dry_run: bool
) -> Iterator[tuple[CacheConfig, PublishedCache | None]]:
    """For an output at a URL: the config with the local folder as its output, and the cache in the store.

    The folder lies in the system's temporary folder, one for each URL, and all ranks of a machine share it. The first of
    them locks it, and fetches what the cache has. It is removed at the end; what a killed run left of it is cleared at the
    next start. Error messages name the URL in place of it. Otherwise: the config and None.
    """
    if isinstance(config.output, Path):
        yield config, None
        return
    url = config.output
    with ExitStack() as stack:
        base = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reskd-"))) if dry_run else working_folder(url)
        )
        stack.enter_context(naming_url(url, base / url.name, base))
        if dry_run:
            published = PublishedCache(url, base / url.name, "", ranks.rank)
            published.folder.mkdir()
            published.pull()
        else:
            on_each_machine(ranks, lambda: _begin(url, base, stack, ranks))
            published = PublishedCache(url, base / url.name, (base / WRITER_ID).read_text(), ranks.rank)
            stack.callback(published.close)
            on_each_machine(ranks, published.pull)
        yield config.model_copy(update={"output": published.folder}), published
        if not dry_run and rank_of_machine() == 0:
            shutil.rmtree(base)


@contextmanager
def copy_of_actor(config: CacheConfig, writer: str | None) -> Iterator[tuple[CacheConfig, PublishedCache | None]]:
    """As `made_locally`, for one actor of an engine: it has a folder of its own, which is removed at the end.

    `writer`: names the writers of all actors of the run, so that one takes over at once from one that has died.
    """
    if writer is None:
        yield config, None
        return
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reskd-")))
        stack.enter_context(naming_url(config.output, base / config.output.name, base))
        published = PublishedCache(config.output, base / config.output.name, writer, secrets.randbelow(2**31))
        published.folder.mkdir()
        stack.callback(published.close)
        published.root.pull()
        yield config.model_copy(update={"output": published.folder}), published
        published.put_logs()


def change_root(published: PublishedCache | None, ranks: Ranks, work: Callable[[], object]) -> None:
    """`work` changes the root's files on rank 0; then every machine has them, and the store, too."""
    if published is None:
        ranks.run_on_first(work)
        return
    ranks.run_on_first(lambda: published.root.change(work))
    on_each_machine(ranks, published.root.pull)


def create(published: PublishedCache | None, path: Path, wanted: Manifest, constants: Constants) -> None:
    """`create_cache`; in the store, the groups that are to be made anew are deleted, too."""
    there = published is not None and (path / METADATA).exists()
    renewed = renewed_shards(load_manifest(path).identity.shards, wanted.identity.shards) if there else []
    create_cache(path, wanted, constants, in_todays_names)
    if renewed:
        published.remove_groups([entry.name for entry in renewed])


def finish(published: PublishedCache | None, path: Path) -> Manifest:
    """Declare the cache finished, in the store, too. Returns the manifest."""
    if published is None:
        finalise(path)
        return add_channel_std(path)

    def work() -> None:
        finalise(path)
        add_channel_std(path, published.url)

    published.pull_missing(load_manifest(path))
    published.root.change(work)
    published.remove_logs()
    manifest = load_manifest(path)
    published.remove_dead_leases(manifest)
    return manifest


def claim_in(published: PublishedCache | None, manifest: Manifest) -> Callable[[ShardWork], bool]:
    """Whether this process writes a piece of work: always, unless a process of another machine writes its shard."""
    return lambda work: published is None or published.claim(manifest, work.shard, work.views, work.targets)


def left_by_others(published: PublishedCache | None, manifest: Manifest) -> list[ShardWork]:
    """What is missing of the shards that were left to others, as soon as one of these is free again."""
    if published is None or not published.left:
        return []
    shard, reason = next(iter(published.left.items()))
    console.print(f"{len(published.left)} shards were left to others ({shard}: {reason}): they are looked at again",
                  highlight=False)  # fmt: skip
    return missing_of_shards(published.folder, manifest, map(manifest.identity.shard, published.wait_for_others()))


def on_each_machine(ranks: Ranks, work: Callable[[], object]) -> None:
    """Run `work` on one rank of each machine, while the others wait. Every rank raises the first ReskdError of any."""
    errors = {}
    if rank_of_machine() == 0:
        try:
            work()
        except ReskdError as error:
            errors[ranks.rank] = error
    if failed := ranks.failed(errors):
        raise next(iter(failed.values()))


def _begin(url: UrlPath, base: Path, stack: ExitStack, ranks: Ranks) -> None:
    """Lock the folder of this machine and clear it, but for the logs of teacher time; see what the store can do."""
    make_private(base.parent)
    make_private(base)
    stack.enter_context(locked(base))
    copy, writer = base / url.name, base / WRITER_ID
    copy.mkdir(exist_ok=True)
    for path in copy.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not is_log(path.name):
            path.unlink()
    if not writer.exists():
        writer.write_text(secrets.token_hex(16))
    if ranks.first:
        check_conditional_puts(url)
    for log in copy.iterdir():  # of a run that was killed
        (url / log.name).upload(log)
