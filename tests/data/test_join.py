"""The join: each row's key is compared, and what a worker meets travels to the user as an error."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache.errors import ReskdError
from cache.reader import CacheReader
from cache.view import ViewPolicy
from stages.prepare.prepare import prepare
from stages.runtime.distributed import Ranks
from stages.shards.dataset import open_dataset
from stages.stream import clips as join
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.loading import batches_in_order, raise_errors


def test_a_key_mismatch_is_refused(data, cached, tmp_path):
    """Past the check of digests, which would have caught it: the row itself is compared."""
    prepare(data.videos / "train", tmp_path / "data", clips_per_shard=80, seed=7, workers=2)
    clips = ClipDataset(open_dataset(tmp_path / "data"), size=16, num_classes=40, cache=CacheReader(cached))
    error = clips.__getitems__([(0, 0, 0)])
    assert isinstance(error, ReskdError) and "row 0: the data set has the clip" in str(error)
    with pytest.raises(ReskdError, match="run cache-teacher into a new folder"):
        list(raise_errors([error]))


def test_a_batch_is_the_rows_that_were_asked_for(data, cached):
    dataset = open_dataset(data.train)
    reader = CacheReader(cached, ("logits", "features"))
    clips = ClipDataset(dataset, size=16, num_classes=40, cache=reader)
    asked = [(2, 39, 1), (0, 64, 0), (0, 63, 0), (0, 64, 1)]
    batch = clips.__getitems__(asked)
    assert batch.index.tolist() == [list(a) for a in asked] and batch.usable.all()
    assert batch.clips.shape == (4, 4, 3, 16, 16) and batch.clips.dtype == torch.uint8
    for i, (s, r, v) in enumerate(asked):
        name = dataset.shards[s].name
        whole, block = reader.view(name, v), reader.block(name, v, r // 64)
        assert batch.labels[i] == dataset.rows(name)[r].labels[0] == batch.multi_hot[i].argmax()
        assert (batch.logits[i].numpy() == whole.logits[r]).all()
        assert (batch.features[i].numpy() == block.features[r % 64]).all()


def test_a_missing_chunk_reaches_the_user(data, cached, tmp_path):
    shutil.copytree(cached, tmp_path / "t.zarr")
    chunk = next(p for p in sorted((tmp_path / "t.zarr" / "000001.tar" / "logits").rglob("c*")) if p.is_file())
    chunk.unlink()
    clips = ClipDataset(open_dataset(data.train), size=16, num_classes=40, cache=CacheReader(tmp_path / "t.zarr"))
    answers = [clips.__getitems__([(1, 0, v)]) for v in range(2)]
    assert any(isinstance(a, ReskdError) and "000001.tar" in str(a) and "logits" in str(a) for a in answers)


# ---- all views of a video ----

TWICE = ViewPolicy(num_frames=4, jitter=False, crop="three_crop", flip=0.0, clips=2)


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """How many frames each decode was asked for."""
    asked, whole = [], join.decode_frames

    def counted(data, indices, decoder):
        asked.append(len(indices))
        return whole(data, indices, decoder)

    monkeypatch.setattr(join, "decode_frames", counted)
    return asked


def test_a_video_is_decoded_once_for_all_its_views(data, decodes, monkeypatch):
    clips = ClipDataset(open_dataset(data.val), size=16, num_classes=40, policy=TWICE)
    asked = [(0, r, v) for r in (3, 4) for v in range(6)]
    batch = clips.__getitems__(asked)
    assert decodes == [8, 8]  # 2 clips of 4 frames; the crops share them
    assert batch.index.tolist() == [list(a) for a in asked] and batch.clips.shape == (12, 4, 3, 16, 16)
    one_by_one = [clips[a] for a in asked]
    assert torch.equal(batch.clips, torch.cat([b.clips for b in one_by_one]))
    assert torch.equal(batch.labels, torch.cat([b.labels for b in one_by_one]))
    del decodes[:]
    row = clips.data.rows("000000.tar")[3]
    monkeypatch.setattr(join, "MAX_DECODED_BYTES", 2 * 4 * 3 * row.width * row.height)  # bytes: of two views
    assert torch.equal(clips.__getitems__(asked).clips, batch.clips)
    assert decodes == [4, 8, 4] * 2


def test_a_video_that_fails_fails_in_all_its_views_and_is_named_once(data, tmp_path):
    shutil.copytree(data.val, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    row = dataset.rows("000000.tar")[1]
    with open(tmp_path / "data" / "000000.tar", "r+b") as tar:
        tar.seek(row.offset)
        tar.write(bytes(row.size))
    clips = ClipDataset(dataset, size=16, num_classes=40, policy=TWICE)
    batch = clips.__getitems__([(0, r, v) for r in (0, 1, 2) for v in range(6)])
    assert batch.usable.tolist() == [True] * 6 + [False] * 6 + [True] * 6
    assert len(batch.failures) == 1 and batch.failures[0].startswith(f"000000.tar/{row.key}: ")
    assert not batch.clips[6:12].any() and batch.clips[12:].any()


@pytest.mark.parametrize(("batch_size", "videos"), [(16, 2), (6, 1), (4, 1)])
def test_ranks_share_whole_videos_none_twice(batch_size, videos):
    data = SimpleNamespace(base=Path("data"), usable_rows=lambda: [np.array([0, 2, 3]), np.array([1])])
    clips = SimpleNamespace(data=data, policy=TWICE, fetcher=lambda first, step: lambda batch: batch)
    taken = []
    for rank in range(3):
        for batch in batches_in_order(clips, LoaderConfig(workers=0), batch_size, Ranks(rank, 3, torch.device("cpu"))):
            rows = [batch[i][:2] for i in range(0, len(batch), 6)]
            assert batch == [(*row, v) for row in rows for v in range(6)] and len(rows) <= videos
            taken += rows
    assert sorted(taken) == [(0, 0), (0, 2), (0, 3), (1, 1)]
