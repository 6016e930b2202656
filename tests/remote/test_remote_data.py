"""A data set at a URL: what is read is what the local files hold, and a tar that was changed is an error."""

from pathlib import Path

import pytest

from cache.errors import ReskdError
from stages.remote.url_path import UrlPath
from stages.shards.dataset import open_dataset
from stages.shards.stream_shard import stream_shard


@pytest.fixture(scope="module")
def remote(s3, data) -> UrlPath:
    folder = UrlPath(s3.bucket) / "data"
    upload_folder(data.train, folder)
    return folder


def upload_folder(folder: Path, to: UrlPath) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder).as_posix()).upload(file)


def test_rows_and_videos_are_those_of_the_local_files(remote, data):
    ours, theirs = open_dataset(data.train), open_dataset(str(remote))
    assert theirs.path == remote and theirs.shards == ours.shards
    for shard in ours.shards:
        assert theirs.rows(shard.name) == ours.rows(shard.name)
        assert list(stream_shard(theirs, shard.name)) == list(stream_shard(ours, shard.name))
        assert theirs.read(shard.name, 3) == ours.read(shard.name, 3)
        assert [r for r, _, _ in stream_shard(theirs, shard.name, lambda r: r % 7 == 1)] == list(
            range(1, shard.clips, 7)
        )


def test_a_tar_that_was_replaced_is_an_error(remote, data, s3):
    changed = UrlPath(s3.bucket) / "changed"
    upload_folder(data.train, changed)
    shards = open_dataset(changed).shards
    whole = (remote / shards[0].name).read_bytes()
    (changed / shards[0].name).write_bytes(whole[:-512])
    (changed / shards[1].name).unlink()
    flipped = bytearray((remote / shards[2].name).read_bytes())
    row = open_dataset(remote).rows(shards[2].name)[5]
    flipped[row.offset + row.size // 2] ^= 1
    (changed / shards[2].name).write_bytes(bytes(flipped))
    there = open_dataset(changed)
    with pytest.raises(ReskdError, match=f"{shards[0].name}.*bytes, the index has"):
        there.read(shards[0].name, 0)
    with pytest.raises(ReskdError, match=f"{shards[1].name}: missing shard"):
        there.read(shards[1].name, 0)
    with pytest.raises(ReskdError, match=f"row 5, {row.key}.*other content"):
        list(stream_shard(there, shards[2].name))
