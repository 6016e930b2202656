"""A batch that can't be had stops a training, which is saved as it was before the step. A resume ends as if nothing was."""

from types import SimpleNamespace

import pytest
import torch

from cache.errors import ReskdError
from stages.demo.digits import make_digits
from stages.prepare.prepare import prepare
from stages.runtime.distributed import join_ranks
from stages.student.cohort_stream import prepare_cohort
from stages.student.train_student import train_student
from tests.runs import rows_of, train_config


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("small")
    make_digits(root / "videos", clips={"train": 24})
    prepare(root / "videos" / "train", root / "data", clips_per_shard=24, workers=0)
    return SimpleNamespace(train=root / "data")


def config_of(small, output):
    return train_config(output, small, "batch_size=2", "accumulate=3", "checkpoint_every=1000")


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    train_student(config_of(small, output))
    return output


@pytest.mark.parametrize(("micro_batch", "step"), [(6, 2), (7, 2), (8, 2)], ids=["first", "middle", "last"])
def test_a_damaged_tar_leaves_a_saved_run(small, whole, tmp_path, micro_batch, step):
    config = config_of(small, tmp_path / "run")
    with join_ranks() as ranks:
        stream, _ = prepare_cohort({"": config}, False, ranks)
    (_, row, _), _ = list(stream.order.batches(0, 0, 0, 1))[micro_batch]
    place = stream.data.train.rows("000000.tar")[row].offset - 512  # of its header
    tar = small.train / "000000.tar"
    good = tar.read_bytes()
    tar.write_bytes(good[:place] + b"another" + good[place + 7 :])
    try:
        with pytest.raises(
            ReskdError, match=rf"another member lies where (.|\n)*stopped at step {step} of 8; all is saved, go"
        ):
            train_student(config)
    finally:
        tar.write_bytes(good)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == step
    train_student(config, resume=True)
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
