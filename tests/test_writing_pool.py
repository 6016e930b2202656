"""Compression and files in a pool of threads: bounded in bytes, the same cache, commits in order, errors that stop it."""

import threading

import numpy as np
import pytest
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from cache.arrays import BLOCKSIZE, encode_chunk, file_format
from cache.codecs import codec_of
from cache.create import create_cache
from cache.group import load_group
from cache.manifest import Manifest
from cache.writer import ShardWriter
from stages.runtime.bounded_pool import bounded_pool
from stages.stream.all_views import ShardWork
from stages.teacher.forward import TeacherOutput
from stages.teacher.target_writer import ViewRows, target_writer
from tests.cache.small_caches import SHARD, content, identity_of, keys_of, tree_of, write_views

SHARDS = {"a.tar": 65, "b.tar": 130, "c.tar": 3}


def test_unfinished_jobs_hold_no_more_bytes_than_allowed():
    go_on, held, seen = threading.Semaphore(0), [0], []
    lock = threading.Lock()

    def job(size):
        with lock:
            held[0] += size
            seen.append(held[0])
        go_on.acquire()
        with lock:
            held[0] -= size
        return size

    sizes, waits = [40, 40, 40, 250, 10, 10, 100], []
    with bounded_pool(4, 100) as run:

        def caller():
            for size in sizes:
                waits.append(run(size, lambda size=size: job(size)))

        thread = threading.Thread(target=caller)
        thread.start()
        for _ in sizes:
            go_on.release()
        thread.join(10)
        assert [wait() for wait in waits] == sizes
    assert max(seen) == 250 and all(total <= 100 or total == 250 for total in seen)


def test_threads_are_started_as_they_are_needed():
    names, both = set(), threading.Barrier(2)
    with bounded_pool(4, 100) as run:
        for _ in range(20):  # one after another
            run(1, lambda: names.add(threading.current_thread().name))()
        assert len(names) == 1
        for wait in [run(1, lambda: (both.wait(10), names.add(threading.current_thread().name))) for _ in range(2)]:
            wait()
    assert len(names) == 2


def test_the_first_error_is_raised_and_nothing_runs_after_it():
    done = []
    with bounded_pool(1, 100) as run:
        failing = run(1, lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failing()
        with pytest.raises(ZeroDivisionError):
            run(1, lambda: done.append(1))
    assert not done


@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("changes", [{}, {"blocksize": 0}, {"clevel": 5, "shuffle": "bitshuffle"}])
def test_a_chunk_file_is_the_one_that_zarr_makes(dtype, rows, changes):
    """Also in an array of another version, whose compression differs: its new chunks are as its old ones."""
    values = np.random.default_rng(rows).normal(size=(rows, 40, 2, 3, 3)).clip(0)
    values = (values * 7).astype(dtype)
    files, form = {}, file_format(values.itemsize, BLOCKSIZE)
    blosc, checksum = form["compressors"]
    form["compressors"] = [
        BloscCodec.from_dict({"name": "blosc", "configuration": blosc.to_dict()["configuration"] | changes}),
        checksum,
    ]
    array = zarr.create_array(MemoryStore(files), shape=values.shape, chunks=values.shape, dtype=dtype, **form)
    array[:] = values
    (wanted,) = (buffer.to_bytes() for name, buffer in files.items() if not name.endswith("zarr.json"))
    assert b"".join(encode_chunk(array, values)) == wanted


def test_rows_behind_the_last_one_of_a_block_are_fill_values(tmp_path):
    """They aren't left as memory was, so that the same rows give the same bytes."""
    manifest = Manifest(identity_of({SHARD: 65}, features=True), 1)
    create_cache(tmp_path / "cache", manifest)
    write_views(tmp_path / "cache", manifest, SHARD, range(1))
    (file,) = (tmp_path / "cache" / SHARD / "features").glob("c.1.0.*")  # zarr shows no rows behind the last one
    rows = np.frombuffer(Blosc().decode(file.read_bytes()[:-4]), np.float16).reshape(64, -1)
    assert np.isfinite(rows[0]).all() and np.isnan(rows[1:]).all()


def test_a_pool_writes_the_same_cache(tmp_path):
    manifest = Manifest(identity_of({SHARD: 130}, features=True), 2)
    for name in ("inline", "pool"):
        create_cache(tmp_path / name, manifest)
    write_views(tmp_path / "inline", manifest, SHARD, range(2), invalid=[3])
    keys = keys_of(SHARD, 130)
    with bounded_pool(3, 1) as run:
        writer = ShardWriter(tmp_path / "pool", manifest, SHARD, keys, range(2), run)
        for view in range(2):
            columns = content(manifest.identity, SHARD, view, [3])
            for rows in (slice(0, 70), slice(70, 130)):
                writer.write(view, rows, **{name: values[rows] for name, values in columns.items()})
        writer.commit({keys[3]: "no video stream"}, {})
    assert tree_of(tmp_path / "pool") == tree_of(tmp_path / "inline")


def fill(path, manifest, after_open=lambda shard: None):
    """Write all shards through stage one's writer; the teacher's answers are prepared."""
    identity = manifest.identity
    with target_writer(path, manifest, lambda seconds, clip_views: None) as (writer, submit):
        for shard, clips in SHARDS.items():
            submit(writer.open, ShardWork(shard, range(1), tuple(identity.targets)), keys_of(shard, clips))
            submit(after_open, shard)
            columns = content(identity, shard, 0)
            for rows in (slice(low, min(low + 16, clips)) for low in range(0, clips, 16)):
                stored = dict(codec_of("logits", "uint8").encode(columns["logits"][rows], {}))
                stored["features"] = np.moveaxis(columns["features"][rows].astype(np.float16), -1, 1)
                output = TeacherOutput(stored, np.ones(rows.stop - rows.start, bool), 0.0)
                drawn = (columns[name][rows] for name in ("frames", "box", "flip"))
                submit(writer.write, ViewRows(0, rows, *drawn, {}), lambda output=output: output)
            submit(writer.commit)


def test_stage_ones_writer_commits_in_order_what_one_thread_would(tmp_path):
    manifest = Manifest(identity_of(SHARDS, features=True), 1)
    for name in ("inline", "pool"):
        create_cache(tmp_path / name, manifest)
    for shard in SHARDS:
        write_views(tmp_path / "inline", manifest, shard, range(1))
    fill(tmp_path / "pool", manifest)
    assert tree_of(tmp_path / "pool") == tree_of(tmp_path / "inline")
    commits = [(tmp_path / "pool" / shard / "zarr.json").stat().st_mtime_ns for shard in SHARDS]
    assert commits == sorted(commits)


def test_an_error_of_the_pool_leaves_what_was_committed_before_it_and_nothing_else(tmp_path):
    manifest = create_cache(tmp_path / "c.zarr", Manifest(identity_of(SHARDS, features=True), 1))

    def block_a_file(shard):
        if shard == "b.tar":  # a folder lies where its second block of maps belongs
            (tmp_path / "c.zarr" / ".tmp" / shard / "features" / "c.1.0.0.0.0.0").mkdir()

    with pytest.raises(OSError, match="c.1.0.0.0.0.0"):
        fill(tmp_path / "c.zarr", manifest, block_a_file)
    assert load_group(tmp_path / "c.zarr", "a.tar")["views"] == 1
    assert all(load_group(tmp_path / "c.zarr", shard) is None for shard in ("b.tar", "c.tar"))
    assert not list((tmp_path / "c.zarr" / ".tmp").iterdir())
    fill_again = Manifest(identity_of(SHARDS, features=True), 1)
    create_cache(tmp_path / "whole", fill_again)
    fill(tmp_path / "whole", fill_again)
    for shard in ("b.tar", "c.tar"):
        write_views(tmp_path / "c.zarr", manifest, shard, range(1))
    assert tree_of(tmp_path / "c.zarr") == tree_of(tmp_path / "whole")
