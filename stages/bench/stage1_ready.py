"""A stand-in for the teacher, and the two halves of stage one around it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from cache.create import create_cache
from cache.manifest import Manifest
from stages.runtime.distributed import Ranks
from stages.shards.dataset import Dataset
from stages.stream.all_views import AllViews, ShardWork, ViewBatch
from stages.teacher.cache_shard import cache_shard
from stages.teacher.cache_teacher import compute_missing
from stages.teacher.codes import FINITE, target_encoder
from stages.teacher.config import CacheConfig
from stages.teacher.forward import AsyncForward, TeacherOutput, async_forward
from stages.teacher.load_teacher import load_teacher
from stages.teacher.reduction import Sample, estimate_constants
from stages.teacher.target_writer import target_writer
from stages.teacher.teacher import Teacher

CLASSES, CODEC = 400, "int4"


@dataclass(frozen=True)
class ReadyTeacher(Teacher):
    """A teacher that returns the same prepared targets for each batch."""

    answers: dict[str, torch.Tensor] = field(default_factory=dict)

    def forward(self, clips: torch.Tensor, targets: Sequence[str]) -> dict[str, torch.Tensor]:
        return {name: self.answers[name] for name in targets}


@dataclass(frozen=True)
class Halves:
    """Stage one of `config` with the stand-in, and its halves. Each run starts with a new cache."""

    config: CacheConfig
    data: Dataset
    teacher: ReadyTeacher
    manifest: Manifest

    def whole(self, ranks: Ranks) -> None:
        """Stage one: decode, render, "forward", encode, write."""
        compute_missing(self.config, self.data, self.teacher, self._new_cache(), ranks)

    def decode(self) -> None:
        """Read, decode and render all views, in this process alone."""
        for _ in AllViews(self.data, self._work(), self.config.policy, self.teacher.size, self.teacher.batch_size):
            pass

    def write(self, codes: bool) -> None:
        """Encode and write all maps. `codes`: they are handed in, as from a device; else the numbers are on the host."""
        manifest = self._new_cache()
        with (
            self._forward(codes) as forward,
            target_writer(self.config.output, manifest, lambda seconds, clip_views: None) as (writer, submit),
        ):
            for work in self._work():
                keys = [row.key for row in self.data.rows(work.shard)]
                cache_shard(work, keys, forward, self._drawn(work, len(keys)), writer, submit)

    def stored(self) -> TeacherOutput:
        """A batch's answer, as it comes from a device."""
        encode = target_encoder(self.manifest.identity.targets, self.teacher.constants, self.teacher.device)
        arrays = {name: values.cpu().numpy() for name, values in encode(self.teacher.answers).items()}
        return TeacherOutput(arrays, arrays.pop(FINITE), 0.0)

    @contextmanager
    def _forward(self, codes: bool) -> Iterator[AsyncForward]:
        if codes:
            output = self.stored()
            yield lambda clips, targets: lambda: output
            return
        with async_forward(self.teacher, self.manifest.identity.targets) as forward:
            yield forward

    def _work(self) -> list[ShardWork]:
        targets = tuple(self.manifest.identity.targets)
        return [ShardWork(entry.name, range(self.config.views), targets) for entry in self.data.shards]

    def _drawn(self, work: ShardWork, clips: int) -> Iterator[ViewBatch]:
        """Batches without pixels: what the second half of stage one reads of them."""
        size, views, time = self.teacher.batch_size, len(work.views), self.config.policy.num_frames
        for start in range(0, clips, size):
            n = min(size, clips - start)
            frames, box = np.zeros((n, views, time), np.int32), np.zeros((n, views, 4), np.float32)
            flip, pixels = np.zeros((n, views), bool), torch.zeros(views, 1, dtype=torch.uint8)
            yield ViewBatch(work, start, frames, box, flip, pixels, {}, {})

    def _new_cache(self) -> Manifest:
        shutil.rmtree(self.config.output, ignore_errors=True)
        return create_cache(self.config.output, self.manifest, dict(self.teacher.constants))


def ready_halves(config: CacheConfig, data: Dataset, shape: tuple[int, ...], device: torch.device) -> Halves:
    """The stand-in's maps have `shape` and are positive, as after a ReLU. 16 % of their numbers are not zero.

    A channel is strong or weak in a whole clip. With this share of it, int3, int4 and int8 maps take as many bytes after zstd as
    those of EfficientNet-Lite2, with ImageNet's weights, of real clips; numbers drawn one by one take a third more.
    """
    random, batch = torch.Generator().manual_seed(0), config.teacher.batch_size
    of_channels = torch.randn(batch, 1, 1, 1, shape[3], generator=random) * 0.6**0.5
    maps = (torch.randn(batch, *shape, generator=random) * 0.4**0.5 + of_channels).sub_(1).relu_()
    answers = {"logits": torch.randn(batch, CLASSES, generator=random).to(device), "features": maps.to(device)}
    sample = Sample(shape[:3], moments=False)
    sample.add(maps, np.zeros(batch, bool))
    teacher, wanted = load_teacher(config, data, device)
    known = {f.name: getattr(teacher, f.name) for f in fields(teacher)}
    known |= {"grid": shape[:3], "constants": estimate_constants(sample, CODEC, None, None)}
    features = {"codec": CODEC, "grid": list(shape[:3]), "width": shape[3], "map": list(shape), "sample": None}
    targets = {"logits": {"codec": "uint8", "width": CLASSES}, "features": features}
    manifest = replace(wanted, identity=replace(wanted.identity, targets=targets))
    return Halves(config, data, ReadyTeacher(**known, answers=answers), manifest)
