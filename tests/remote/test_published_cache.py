"""Stage one writes a cache into a store: its objects are the files of a local cache, and no kill or late writer spoils it."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from cache.errors import ReskdError, StoreError
from cache.group import load_group
from cache.manifest import Manifest
from stages.bench.s3_server import free_port
from stages.remote import lease, published_cache
from stages.remote.lease import LeaseLost, take_lease
from stages.remote.probe import check_conditional_puts
from stages.remote.published_cache import PublishedCache
from stages.remote.shard_commit import fence, put_attributes, put_files
from stages.remote.store import connections
from stages.remote.url_path import UrlPath
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.url_output import create
from tests.cache.small_caches import identity_of, write_views
from tests.runs import POLICY, cache_config, sets, tree

SHARD = "000000.tar"
WHOLE = Manifest(identity_of({SHARD: 3, "000001.tar": 70}, features=True), 2)


@pytest.fixture
def url(s3, request, tmp_path, monkeypatch) -> UrlPath:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (UrlPath(s3.bucket) / "published" / "made").write_bytes(b"")  # the bucket comes with it
    return UrlPath(s3.bucket) / "published" / hashlib.sha256(request.node.name.encode()).hexdigest()[:8] / "t.zarr"


@pytest.fixture
def small(data):
    """40 clips in one shard."""
    return SimpleNamespace(train=data.val)


def download(url: UrlPath, folder) -> dict[str, str]:
    """All objects below a URL, as `tree` shows the files of a folder."""
    for name in url.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((url / name).read_bytes())
    return tree(folder)


def settings(url: UrlPath, data, teacher) -> list[str]:
    """Options of a run that makes the content of `cached`."""
    return sets({"output": str(url), "data": str(data.train), "teacher.checkpoint": str(teacher), "views": 2, "policy": POLICY,
                 "loader.workers": 0})  # fmt: skip


def writer_of(url: UrlPath, folder, name: str, manifest: Manifest = WHOLE) -> PublishedCache:
    """A process on a machine of its own, with `folder`, that is about to write the cache at `url`."""
    published = PublishedCache(url, folder / name / "t.zarr", name, 0)
    published.folder.mkdir(parents=True)
    published.pull()
    published.root.change(lambda: create(published, published.folder, manifest, {}))
    return published


def compute(published: PublishedCache, shard: str = SHARD, manifest: Manifest = WHOLE, **content) -> None:
    """Claim a shard and commit it in the folder. `invalid`: rows without targets, so that other bytes are written."""
    assert published.claim(manifest, shard, range(manifest.views), tuple(manifest.identity.targets))
    write_views(published.folder, manifest, shard, range(manifest.views), **content)


def test_it_is_the_local_cache_object_for_object_and_grows_as_that_does(url, small, teacher, tmp_path):
    config, local = cache_config(url, small, teacher, "targets.features=null"), tmp_path / "local.zarr"
    assert cache_teacher(config, dry_run=True, probe=0)["output"] == str(url) and not url.files()
    assert cache_teacher(config)["clip_views"] == 80
    features = cache_config(url, small, teacher, "targets.features={codec: int8, dims: 8}")
    assert cache_teacher(features, verify=5)["clip_views"] == 80
    result = cache_teacher(features.model_copy(update={"views": 3}), verify=5)
    assert result["clip_views"] == 40 and not list(tmp_path.glob("reskd-*/t.zarr-*"))  # the local folder is gone
    for views in (2, 3):
        at_once = cache_teacher(features.model_copy(update={"output": local, "views": views}))
    assert download(url, tmp_path / "copy") == tree(local)
    assert at_once["top1"] == result["top1"] and 0.9 < result["bytes"] / at_once["bytes"] <= 1
    with pytest.raises(ReskdError, match=f"{url} is planned for 3 views, this run wants 2"):
        cache_teacher(features)


def test_a_killed_run_is_done_again_where_it_was_not_committed(url, s3, data, teacher, cached, zygote, tmp_path):
    """It is killed when the first chunk is in the store, and then when the first commit is."""
    command = ["cache-teacher", *settings(url, data, teacher), "--json", tmp_path / "r.json"]
    for happened in ((url / SHARD / "frames/c.0.0.0").is_file, lambda: load_group(url, SHARD)):
        run = zygote.start(command, TMPDIR=str(tmp_path), **s3.environment)
        while not happened():
            assert not run.status.exists(), run.said()
            time.sleep(0.002)
        run.kill()
        run.wait()
    clips = {"000000.tar": 160, "000001.tar": 160, "000002.tar": 80}
    committed = [name for name in clips if load_group(url, name)]
    before = {name: (url / name / "zarr.json").etag() for name in committed}
    again = zygote.start(command, TMPDIR=str(tmp_path), **s3.environment)
    assert again.wait() == 0, again.said()
    computed = json.loads((tmp_path / "r.json").read_text())["clip_views"]
    assert computed == 400 - sum(map(clips.get, committed)) < 400
    assert {name: (url / name / "zarr.json").etag() for name in committed} == before
    assert download(url, tmp_path / "copy") == tree(cached)


def test_two_runs_at_once_write_each_shard_once(url, s3, data, teacher, cached, zygote, tmp_path):
    runs = []
    for machine in ("a", "b"):
        (tmp_path / machine).mkdir()
        arguments = ["cache-teacher", *settings(url, data, teacher), "--json", tmp_path / machine / "r.json"]
        runs.append(zygote.start(arguments, TMPDIR=str(tmp_path / machine), **s3.environment))
    for run in runs:
        assert run.wait() == 0, run.said()
    results = [json.loads((tmp_path / machine / "r.json").read_text()) for machine in ("a", "b")]
    assert sum(result["clip_views"] for result in results) == 400
    assert results[0]["bytes"] == results[1]["bytes"] and results[0]["top1"] == results[1]["top1"]
    assert download(url, tmp_path / "copy") == tree(cached)


def test_ranks_on_two_machines_make_it_together(url, s3, data, teacher, cached, zygote, tmp_path):
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": "", **s3.environment}  # fmt: skip
    for machine in "01":
        (tmp_path / machine).mkdir()
    ranks = [
        zygote.start(
            ["cache-teacher", *settings(url, data, teacher)], RANK=machine, TMPDIR=str(tmp_path / machine), **common
        )
        for machine in "01"
    ]
    for rank in ranks:
        assert rank.wait() == 0, rank.said()
    assert download(url, tmp_path / "copy") == tree(cached)
    assert not list(tmp_path.glob("*/reskd-*/t.zarr-*"))


def test_a_writer_that_sleeps_and_wakes_after_the_commit_of_another_changes_nothing(url, tmp_path, monkeypatch):
    late, other = writer_of(url, tmp_path, "late"), writer_of(url, tmp_path, "other")
    compute(late)
    assert not other.claim(WHOLE, SHARD, range(2), tuple(WHOLE.identity.targets))
    assert "writes it" in other.left[SHARD]
    monkeypatch.setattr(lease, "STALE_AFTER", 0.0)
    compute(other, invalid=[1])
    other.publish(SHARD)
    after = url.files(), {name: (url / name).read_bytes() for name in url.files()}
    with pytest.raises(LeaseLost, match=f"{SHARD}.*another writer"):
        late.publish(SHARD)
    assert after == (url.files(), {name: (url / name).read_bytes() for name in url.files()})
    late.give_up(SHARD)
    assert load_group(late.folder, SHARD)["quarantine"] and late.wait_for_others() == [SHARD]


@pytest.mark.parametrize("committed", [False, True], ids=["new", "grown"])
def test_a_writer_that_wakes_just_before_its_commit_cannot_commit(url, tmp_path, monkeypatch, committed):
    """All its chunks are there and compared when another takes over, which has put nothing yet."""
    if committed:
        first = writer_of(url, tmp_path, "first", Manifest(WHOLE.identity, 1))
        compute(first, manifest=Manifest(WHOLE.identity, 1))
        first.publish(SHARD)
    late, other = writer_of(url, tmp_path, "late"), writer_of(url, tmp_path, "other")
    views = range(committed, 2)

    def write(published, **content):
        assert published.claim(WHOLE, SHARD, views, tuple(WHOLE.identity.targets))
        published.prepare(SHARD)
        write_views(published.folder, WHOLE, SHARD, views, **content)

    write(late)
    monkeypatch.setattr(lease, "STALE_AFTER", 0.0)
    commit = published_cache.put_attributes

    def after_a_takeover(*arguments):
        monkeypatch.setattr(published_cache, "put_attributes", commit)
        write(other, invalid=[1])
        return commit(*arguments)

    monkeypatch.setattr(published_cache, "put_attributes", after_a_takeover)
    with pytest.raises(LeaseLost):
        late.publish(SHARD)
    assert (load_group(url, SHARD) or {"views": 0})["views"] == committed
    other.publish(SHARD)
    group = load_group(url, SHARD)
    assert group["views"] == 2 and group["quarantine"]
    for name, (size, digest) in group["files"].items():
        data = (url / SHARD / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    assert not (url / SHARD / ".writer").is_file()


@pytest.mark.parametrize("committed", [None, b'{"zarr_format": 3}'])
def test_no_take_over_brings_back_the_state_that_an_earlier_writer_has_seen(url, committed):
    file = url / "zarr.json"
    seen = [file.write_new(committed)] if committed else []
    for _ in range(4):  # takeovers, one after another
        content, etag = fence(file)
        assert (content, etag) == file.read_with_etag() and etag not in seen
        seen.append(etag)
        for earlier in seen[:-1]:
            with pytest.raises(LeaseLost):
                put_attributes(file, b"{}", earlier)


def test_a_lease_is_one_writers_until_it_is_old(url, monkeypatch):
    file = url / "x" / ".writer"
    mine = take_lease(file, "a")
    assert take_lease(file, "b").writer == "a"
    mine.renew()
    assert mine.is_held() and not mine.taken_over
    again = take_lease(file, "a")  # after a kill on the same machine
    assert again.taken_over and not mine.is_held()
    mine.renew()
    mine.release()
    assert again.is_held()
    monkeypatch.setattr(lease, "STALE_AFTER", 0.0)
    taken = take_lease(file, "b")
    assert taken.taken_over and taken.is_held() and not again.is_held()
    taken.release()
    assert not file.is_file() and not take_lease(file, "c").taken_over
    file.write_bytes(b"[]")
    with pytest.raises(ReskdError, match="isn't a writer's object"):
        take_lease(file, "b")


def test_a_chunk_that_is_lost_or_replaced_before_the_commit_is_noticed(url, tmp_path, monkeypatch):
    for name in ("x", "y"):
        (tmp_path / name).write_bytes(name.encode())
    held = take_lease(url / ".writer", "a")
    real = UrlPath.etag

    def spoiled(spoil):
        def etag(path):
            if path.name == "x":
                spoil(path)
            return real(path)

        monkeypatch.setattr(UrlPath, "etag", etag)
        put_files(tmp_path, url / "g", ["x", "y"], held)

    with pytest.raises(StoreError, match="g/x isn't what was put there.*it is gone"):
        spoiled(lambda path: path.unlink())
    with pytest.raises(StoreError, match="g/x isn't what was put there.*its ETag is"):
        spoiled(lambda path: path.write_bytes(b"other"))


def test_what_is_no_place_for_a_cache_is_refused_by_name(url, s3, small, teacher, monkeypatch):
    config = cache_config(url, small, teacher)
    (url / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ReskdError, match=rf"{url} holds something else than a cache \(photo.jpg\)"):
        cache_teacher(config)
    assert url.files() == {"photo.jpg": 1}
    with pytest.raises(ReskdError, match="http://127.0.0.1/t.zarr: a web server can only be read"):
        cache_config("http://127.0.0.1/t.zarr", small, teacher)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    connections.cache_clear()
    with pytest.raises(StoreError, match=rf"{url}.*AWS_SECRET_ACCESS_KEY"):
        cache_teacher(config)
    connections.cache_clear()


class IgnoresConditions(BaseHTTPRequestHandler):
    """A store that takes every put."""

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_PUT

    def log_message(self, *_):
        pass


def test_a_store_without_conditional_puts_is_refused(url, monkeypatch):
    check_conditional_puts(url)
    assert not url.files()
    server = HTTPServer(("127.0.0.1", 0), IgnoresConditions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    connections.cache_clear()
    with pytest.raises(StoreError, match="ignores the condition of a put.*local folder, and copy it"):
        check_conditional_puts(url)
    connections.cache_clear()
    server.shutdown()
    server.server_close()
