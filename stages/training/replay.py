"""What of a cache a run replays, fixed at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.reader import CacheReader, check_join, load_manifest
from cache.store import METADATA
from cache.writer import committed_views
from stages.config import TrainConfig
from stages.data.decode import decoder_identity
from stages.data.shards import Dataset
from stages.distill.targets import Classifier
from stages.training.log import console


@dataclass(frozen=True)
class Replay:
    """The part of a cache that a run replays, frozen at its start: a cache that grows doesn't change it."""

    manifest: Manifest
    views: int
    rows: list[np.ndarray]  # of each shard of the data set
    classifier: tuple[np.ndarray, np.ndarray] | None  # the teacher's, weight [D,K] and bias [K]; where a loss needs it

    def classifier_on(self, device: torch.device) -> Classifier | None:
        """The classifier as a linear layer has it, weight [K,D] and bias [K]."""
        if self.classifier is None:
            return None
        weight, bias = (torch.from_numpy(values).to(device) for values in self.classifier)
        return weight.T.contiguous(), bias


def open_replay(config: TrainConfig, data: Dataset, allow_partial: bool) -> Replay:
    """Hold the cache against the data set, and fix which views and rows are replayed.

    Raises ReskdError for a cache of other shards, one that isn't finished (unless `allow_partial`), one with fewer
    views than asked for, or without its teacher's classifier where logit_map_kl needs it.
    """
    path, manifest = config.data.cache, load_manifest(config.data.cache)
    check_join(manifest, data.shards)
    if tuple(manifest.identity.classes) != tuple(data.classes):
        raise ReskdError(f"{path} was made for other classes than {data.path} has: make it anew")
    if manifest.identity.decoder != decoder_identity():
        console.print(f"[yellow]warning[/] {path} was decoded by {manifest.identity.decoder}, here it is "
                      f"{decoder_identity()}: frames may differ a little")  # fmt: skip
    views = config.data.views or manifest.finalised or manifest.views
    if views > manifest.views:
        raise ReskdError(f"data.views {views}: {path} has {manifest.views} views: lower it, or raise `views` of "
                         f"cache-teacher")  # fmt: skip
    classifier = CacheReader(path, ()).classifier() if config.losses.logit_map_kl > 0 else None
    usable = data.usable_rows()
    lost = [e.name for e in data.shards if not (path / e.name / METADATA).exists()]
    if views <= manifest.finalised and not lost:
        rows = [
            np.setdiff1d(u, list(manifest.quarantine.get(e.name, {}))) for e, u in zip(data.shards, usable, strict=True)
        ]
        return Replay(manifest, views, rows, classifier)
    if not allow_partial:
        what = f"it lacks {len(lost)} shards, {lost[0]} first" if lost else f"{manifest.finalised} of {views} views"
        raise ReskdError(f"{path} is not finished ({what}): run cache-teacher again, or train on what is there with "
                         f"--allow-partial")  # fmt: skip
    return Replay(manifest, views, _partial_rows(path, views, data, usable), classifier)


def _partial_rows(path: Path, views: int, data: Dataset, usable: list[np.ndarray]) -> list[np.ndarray]:
    """What an unfinished cache has: shards that have all the views, without their quarantined rows."""
    rows, left_out = [], []
    reader = CacheReader(path, ())
    for entry, of_shard in zip(data.shards, usable, strict=True):
        if committed_views(path, entry.name) < views:
            left_out.append(entry.name)
            rows.append(of_shard[:0])
            continue
        valid = np.all([reader.view(entry.name, view).valid for view in range(views)], axis=0)
        rows.append(of_shard[valid[of_shard]])
    clips = sum(len(u) for u in usable) - sum(map(len, rows))
    console.print(f"[yellow]--allow-partial[/] {path}: leaves out {len(left_out)} of {len(data.shards)} shards "
                  f"({clips} clips) that lack some of {views} views: {', '.join(left_out[:10])}"
                  + (" …" if len(left_out) > 10 else ""))  # fmt: skip
    return rows
