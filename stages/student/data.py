"""A run's data sets, and the packs that their frames come from."""

from __future__ import annotations

from dataclasses import dataclass

from cache.errors import ReskdError
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.frame_source import check_fresh, check_stored, open_frames, warn_if_enlarged
from stages.stream.pack_reader import Pack
from stages.stream.replay import Replay
from stages.student.config import TrainConfig


@dataclass(frozen=True)
class Packs:
    """Of a training run's data sets; None where the videos themselves are read."""

    train: Pack | None
    val: Pack | None


def open_data(config: TrainConfig) -> tuple[Dataset, Dataset | None, Packs]:
    """A run's data sets and their packs, by `open_frames`; no validation set where none is given."""
    data, pack = open_frames(open_dataset(config.data.train), config.data.pack)
    if config.data.val is None:
        return data, None, Packs(pack, None)
    val, val_pack = open_frames(open_dataset(config.data.val), config.data.val_pack)
    return data, val, Packs(pack, val_pack)


def check_packs(config: TrainConfig, packs: Packs, replay: Replay | None) -> None:
    """Raises ReskdError unless they have the frames that the run's views need; a word where they are too small.

    `config`: with the policies filled in.
    """
    size = config.render_via or config.size
    if packs.train and replay and not config.data.mismatch:
        check_stored(packs.train, replay, config.data.cache)
        if packs.train.manifest.identity.frames == "crops" and config.render_via:
            raise ReskdError(f"render_via {config.render_via}: {packs.train.path} has finished pictures: leave render_via out, "
                             "or run `pack` with frames: views into a new folder")  # fmt: skip
        warn_if_enlarged(packs.train, replay.manifest.identity.policy, size)
    elif packs.train:
        check_fresh(packs.train, config.policy, size, "fresh views of data.train")
    if packs.val:
        check_fresh(packs.val, config.eval_policy, size, "validation")
