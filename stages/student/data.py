"""The data sets of a run, and the packs that give their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache.errors import ReskdError
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.labels import check_labels
from stages.stream.frame_source import check_fresh_views, check_stored_views, open_frames, warn_if_enlarged
from stages.stream.pack_reader import Pack
from stages.stream.replay import Replay
from stages.student.config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """The data sets of a run. A pack is None where frames come from the videos themselves."""

    train: Dataset
    val: Dataset | None
    train_pack: Pack | None
    val_pack: Pack | None


def open_data(config: TrainConfig) -> TrainingData:
    """Open a run's data sets and packs, by `open_frames`."""
    train, train_pack = open_frames(open_dataset(config.data.train), config.data.pack)
    if config.data.val is None:
        return TrainingData(train, None, train_pack, None)
    val, val_pack = open_frames(open_dataset(config.data.val), config.data.val_pack)
    return TrainingData(train, val, train_pack, val_pack)


def check_classes_and_labels(configs: Sequence[TrainConfig], data: TrainingData) -> None:
    """Raise ReskdError if the losses of any student can't use the labels, or the data sets differ in their classes."""
    single = any(config.losses.takes_one_label for config in configs)
    labelled = check_labels(data.train, single=single)["labelled"]
    if labelled == 0 and not all(config.losses.stored_targets for config in configs):
        raise ReskdError(f"{data.train.path} has no labelled clip, and no loss without labels is set: give "
                         f"losses.logit_kl or losses.feature_mse a weight and data.cache")  # fmt: skip
    if data.val is None:
        return
    if data.val.classes != data.train.classes:
        raise ReskdError(f"{data.val.path} has other classes than {data.train.path}: prepare both with one class list "
                         f"(prepare --class-order {data.train.path})")  # fmt: skip
    check_labels(data.val, single=False)


def check_packs(config: TrainConfig, data: TrainingData, replay: Replay | None) -> None:
    """Raise ReskdError unless the packs have the frames that the run's views need. Print a warning if they are too small.

    `config` has its policies filled in.
    """
    size = config.render_via or config.size
    pack = data.train_pack
    if pack and replay:
        check_stored_views(pack, replay, config.data.cache)
        if pack.manifest.identity.frames == "crops" and config.render_via:
            raise ReskdError(f"render_via {config.render_via}: {pack.path} has finished pictures: leave render_via out, "
                             "or run `pack` with frames: all into a new folder")  # fmt: skip
        warn_if_enlarged(pack, replay.manifest.identity.policy, size)
    elif pack:
        check_fresh_views(pack, config.policy, size, "fresh views of data.train")
    if data.val_pack:
        check_fresh_views(data.val_pack, config.eval_policy, size, "validation")
