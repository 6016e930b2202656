"""Files at URLs, against a real S3 server: what is there, what isn't, who writes first, and what a bad network does."""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cache.errors import ReskdError, StoreError
from stages.remote import outputs, url_path
from stages.remote.local_copy import local_copy
from stages.remote.outputs import NotPut, put_known, written_at
from stages.remote.store import Changed, connections
from stages.remote.url_path import UrlPath, location


@pytest.fixture
def folder(s3, request) -> UrlPath:
    return UrlPath(s3.bucket) / "paths" / request.node.name


def test_it_answers_as_a_local_path_does(folder, tmp_path):
    for path in (folder, tmp_path):
        (path / "a").mkdir() if path is tmp_path else None
        (path / "a" / "x.txt").write_bytes(b"hello")
        assert (path / "a" / "x.txt").read_bytes() == b"hello" == (path / "a" / "x.txt").open("rb").read()
        assert (path / "a" / "x.txt").read_text() == "hello"
        assert (path / "a" / "x.txt").name == "x.txt" and (path / "a" / "x.txt").suffix == ".txt"
        assert (path / "a" / "x.txt").parent == path / "a" and (path / "a").with_name("b") == path / "b"
        assert (path / "a" / "x.txt").is_file() and not (path / "a").is_file() and (path / "a").is_dir()
        assert (path / "a").exists() and not (path / "b").exists() and not (path / "b").is_dir()
        assert list(path.iterdir()) == [path / "a"] and list((path / "a").iterdir()) == [path / "a" / "x.txt"]
        with pytest.raises(FileNotFoundError) as caught:
            (path / "b").read_bytes()
        assert caught.value.filename == str(path / "b") if path is folder else path / "b"
    assert (folder / "a/x.txt").read_range(1, 3) == b"el" and (folder / "a/x.txt").size() == 5
    assert folder.files() == {"a/x.txt": 5} and pickle.loads(pickle.dumps(folder)) == folder
    (folder / "a/x.txt").unlink()
    (folder / "a/x.txt").unlink()
    assert not (folder / "a").exists()


def test_one_writer_is_first_and_only_what_was_read_is_replaced(folder):
    file = folder / "file"
    first = file.write_new(b"first")
    with pytest.raises(FileExistsError):
        file.write_new(b"second")
    assert file.read_with_etag() == (b"first", first) and file.etag() == first
    second = file.replace(b"second", first)
    with pytest.raises(Changed, match="another writer"):
        file.replace(b"third", first)
    assert file.read_with_etag() == (b"second", second)


def test_a_url_is_normal_and_others_are_refused():
    assert str(UrlPath("s3://b//x/") / "y") == "s3://b/x/y" and UrlPath("s3://b/x").parent == UrlPath("s3://b")
    assert isinstance(location("s3://b/x"), UrlPath) and str(location("runs/x")) == "runs/x"
    assert UrlPath("s3://b/x/y") / "../z" == UrlPath("s3://b/x/z") and UrlPath("s3://b/x") / "." == UrlPath("s3://b/x")
    for name in ("/etc", "../../x"):
        with pytest.raises(ReskdError, match="/etc: a path of one machine|leads out of s3://b"):
            UrlPath("s3://b/x") / name
    for text in ("https://me:secret@host/x", "https://host/x?X-Amz-Signature=secret", "s3://key:secret@b/x"):
        with pytest.raises(ReskdError, match="credentials and queries may not be in a URL") as caught:
            location(text)
        assert "secret" not in str(caught.value)
    for text in ("ftp://b/x", "s3://", "pipe://x"):
        with pytest.raises(ReskdError, match="s3://, gs://"):
            location(text)


def test_a_web_server_without_etags_is_read(tmp_path):
    (tmp_path / "x").write_bytes(b"hello")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = UrlPath(f"http://127.0.0.1:{server.server_address[1]}/x")
        assert file.read_bytes() == b"hello" and file.is_file() and file.exists()
        assert not (file.parent / "y").is_file() and not (file.parent / "y").exists()
        server.shutdown()


def test_a_large_object_is_read_in_parts_of_one_state(folder, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(url_path, "PART", 1000)
    data = bytes(range(256)) * 10
    etag = (folder / "x").write_bytes(data)
    (folder / "x").download(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert sorted(asked for _, _, asked in proxy.log if asked)[1:] == ["bytes=1000-1999", "bytes=2000-2559"]
    proxy.log.clear()
    assert (folder / "x").read_with_etag() == (data, etag)
    assert [asked for _, _, asked in proxy.log if asked] == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2559"]
    real, replaced = UrlPath._do, []

    def do(self, verb, *rest):
        answer = real(self, verb, *rest)
        if verb == "get" and not replaced:  # another writer replaces it between two requests
            replaced.append(True)
            (folder / "x").write_bytes(os.urandom(2560))
        return answer

    monkeypatch.setattr(UrlPath, "_do", do)
    monkeypatch.setattr(url_path, "PARTS_AT_ONCE", 1)
    for read in ((folder / "x").read_bytes, lambda: (folder / "x").download(tmp_path / "x")):
        with pytest.raises(Changed):
            read()
        replaced.clear()
    assert not (tmp_path / "x").exists()
    (folder / "x").write_bytes(data)

    def do_and_delete(self, verb, *rest):
        answer = real(self, verb, *rest)
        if verb == "get":
            real(self, "delete", lambda o, store: o.delete(store, self.key))
        return answer

    monkeypatch.setattr(UrlPath, "_do", do_and_delete)
    with pytest.raises(Changed, match=f"{folder}/x: it was deleted while it was read"), local_copy(folder / "x"):
        pass


def test_what_is_there_already_is_compared_part_by_part(folder, proxy, monkeypatch):
    monkeypatch.setattr(outputs, "PART", 1000)
    data = os.urandom(2560)
    etag = (folder / "x").write_bytes(data)
    assert put_known(folder / "x", data, None) == put_known(folder / "x", data, "old") == etag
    assert {asked for method, _, asked in proxy.log if method == "GET"} == {
        f"bytes={i}" for i in ("0-999", "1000-1999", "2000-2559")
    }
    assert put_known(folder / "x", data[:-1] + bytes([data[-1] ^ 1]), None) is None
    assert put_known(folder / "x", data[:-1], None) is None and put_known(folder / "gone", data, "old") is None


def test_files_that_a_store_does_not_take_are_kept_and_the_others_put(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real, lost = UrlPath.upload, ["b.csv"]

    def upload(self, file):
        if self.name in lost:
            raise StoreError(f"{self}: put failed (503)")
        return real(self, file)

    def write():
        with written_at(folder / "a") as a, written_at(folder / "b") as b, written_at(folder / "c") as c:
            for file in (a, b, b.with_name("b.csv"), c):
                file.write_text(file.name)

    monkeypatch.setattr(UrlPath, "upload", upload)
    with pytest.raises(
        NotPut, match=rf"{folder}/b.csv: put failed .* kept in (.*): copy its files to {folder}"
    ) as caught:
        write()
    (kept,) = tmp_path.iterdir()
    assert {p.name: p.read_text() for p in kept.iterdir()} == {"b": "b", "b.csv": "b.csv"} and str(kept) in str(
        caught.value
    )
    assert {*folder.files()} == {"a", "b", "c"}
    lost += ["a"]
    with pytest.raises(NotPut) as caught:
        write()
    assert all(f"{folder}/{name}: put failed" in str(caught.value) for name in lost) and len([*tmp_path.iterdir()]) == 3
    with pytest.raises(StoreError, match="an input"), written_at(folder / "a"):
        raise StoreError("an input")
    assert len([*tmp_path.iterdir()]) == 3


def test_a_store_that_stumbles_is_asked_again(folder, proxy):
    (folder / "x").write_bytes(bytes(200_000))
    proxy.unavailable = 2
    assert (folder / "x").read_bytes() == bytes(200_000)
    proxy.cut = 1
    assert (folder / "x").read_bytes() == bytes(200_000)


@pytest.mark.parametrize("fault", ["secret", "bucket", "address"])
def test_what_cannot_be_had_is_said_in_time(s3, folder, fault, monkeypatch):
    monkeypatch.setenv("RESKD_STORE_SECONDS", "1")
    if fault == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    if fault == "address":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    connections.cache_clear()
    path = UrlPath("s3://no-such-bucket/x") if fault == "bucket" else folder / "x"
    said = {"secret": "AWS_SECRET_ACCESS_KEY", "bucket": "no such bucket", "address": "RESKD_STORE_SECONDS"}[fault]
    with pytest.raises(StoreError, match=said) as caught:
        path.read_bytes()
    connections.cache_clear()
    assert str(path) in str(caught.value) and "wrong" not in str(caught.value).replace("went wrong", "")


def test_without_the_extra_it_says_which():
    code = "import sys; sys.modules['obstore'] = None\n" \
           "from stages.remote.url_path import UrlPath; UrlPath('s3://b/x').read_bytes()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert "--extra remote" in done.stderr
