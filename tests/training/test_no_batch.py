"""A batch that can't be had stops a training, which is saved as it was before the step. A resume ends as if nothing was."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cache.errors import ReskdError
from stages.demo.digits import make_digits
from stages.prepare.prepare import prepare
from stages.runtime.distributed import join_ranks
from stages.shards.dataset import Row, open_dataset
from stages.student.cohort_stream import prepare_cohort
from stages.student.train_student import train_student
from tests.runs import rows_of, train_config


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("small")
    make_digits(root / "videos", clips={"train": 24})
    for split in ("train", "val"):
        prepare(root / "videos" / "train", root / split, workers=0)
    return SimpleNamespace(train=root / "train", val=root / "val")


def config_of(small, output):
    changes = ["loader.resident=false", "batch_size=2", "accumulate=3", "checkpoint_every=1000"]
    return train_config(output, small, *changes, f"data.val={small.val}")


def damage(tar: Path, row: Row) -> bytes:
    """Put another member where a row's video is; returns the good tar."""
    good, place = tar.read_bytes(), row.offset - 512  # of the video's header
    tar.write_bytes(good[:place] + b"another" + good[place + 7 :])
    return good


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    train_student(config_of(small, output))
    return output


@pytest.mark.parametrize(("micro_batch", "step"), [(6, 2), (8, 2)], ids=["first", "last"])
def test_a_damaged_tar_leaves_a_saved_run(small, whole, tmp_path, micro_batch, step):
    config = config_of(small, tmp_path / "run")
    with join_ranks() as ranks:
        stream, _ = prepare_cohort({"": config}, False, ranks)
    (_, row, _), _ = list(stream.order.batches(0, 0, 0, 1))[micro_batch]
    tar = small.train / "000000.tar"
    good = damage(tar, stream.data.train.rows("000000.tar")[row])
    try:
        with pytest.raises(
            ReskdError, match=rf"another member lies where (.|\n)*stopped at step {step} of 8; all is saved, go"
        ):
            train_student(config)
    finally:
        tar.write_bytes(good)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == step
    ends_like(whole, config)


@pytest.mark.parametrize("every", [1, 2], ids=["in the middle", "at the end"])
def test_a_damaged_tar_of_validation_clips_leaves_a_saved_run_that_validates_when_it_goes_on(
    small, whole, tmp_path, every
):
    config = config_of(small, tmp_path / "run")
    config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"val_every": every})})
    if every == 2:
        train_student(config.model_copy(update={"output": tmp_path / "whole"}))
    tar, step = small.val / "000000.tar", 4 * every
    good = damage(tar, open_dataset(small.val).rows("000000.tar")[5])
    try:
        for options in ({}, {"resume": True}):  # it doesn't go on without its validation
            with pytest.raises(ReskdError, match="another member lies where"):
                train_student(config, **options)
            assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == step
    finally:
        tar.write_bytes(good)
    ends_like(tmp_path / "whole" if every == 2 else whole, config)


def ends_like(whole, config):
    train_student(config, resume=True)
    assert rows_of(config.output) == rows_of(whole) and rows_of(config.output, "val") == rows_of(whole, "val")
    assert (config.output / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    assert (config.output / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
