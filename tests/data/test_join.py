"""The join: each row's key is compared, and what a worker meets travels to the user as an error."""

import shutil

import pytest
import torch

from cache.errors import ReskdError
from cache.reader import CacheReader
from stages.data.join import Clips
from stages.data.shards import open_dataset
from stages.prepare import prepare
from stages.training.loading import raising


def test_a_key_mismatch_is_refused(data, cached, tmp_path):
    """Past the check of digests, which would have caught it: the row itself is compared."""
    prepare(data.videos / "train", tmp_path / "data", clips_per_shard=80, seed=7, workers=2)
    clips = Clips(open_dataset(tmp_path / "data"), size=16, num_classes=40, cache=CacheReader(cached))
    error = clips.__getitems__([(0, 0, 0)])
    assert isinstance(error, ReskdError) and "row 0: the data set has the clip" in str(error)
    with pytest.raises(ReskdError, match="run cache-teacher into a new folder"):
        list(raising([error]))


def test_a_batch_is_the_rows_that_were_asked_for(data, cached):
    dataset = open_dataset(data.train)
    reader = CacheReader(cached, ("logits", "features"))
    clips = Clips(dataset, size=16, num_classes=40, cache=reader)
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
    clips = Clips(open_dataset(data.train), size=16, num_classes=40, cache=CacheReader(tmp_path / "t.zarr"))
    answers = [clips.__getitems__([(1, 0, v)]) for v in range(2)]
    assert any(isinstance(a, ReskdError) and "000001.tar" in str(a) and "logits" in str(a) for a in answers)
