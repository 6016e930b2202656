"""One micro-batch: what a student and the losses read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from stages.video.device_render import Rendering, Windows, draw


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B views, in training of as many rows."""

    clips: Tensor | None  # uint8 [B,T,3,S,S]; zeros where not usable; None where `to` draws them, of `windows`
    labels: Tensor  # int64 [B], -1 where unlabelled; the first label of several
    multi_hot: Tensor  # float32 [B,K]
    usable: Tensor  # bool [B], False where the view could not be decoded
    index: Tensor  # int64 [B,3] shard, row, view
    logits: Tensor | None = None  # float32 [B,K]
    features: Tensor | None = None  # [B,T',g,g',d] as stored: float16, or int8 codes
    also: Mapping[Rendering, Tensor] = field(default_factory=dict)  # the same views at other sizes, as `clips`
    windows: Windows | None = None
    failures: tuple[str, ...] = ()  # shard/key: reason, one for each row with a view that is not usable
    fallbacks: tuple[str, ...] = ()  # shard/key: decoded by another decoder than the index names

    def seen_at(self, rendering: Rendering | None) -> Batch:
        """With the clips that were rendered `also` so; None: as it is."""
        return self if rendering is None else replace(self, clips=self.also[rendering])

    def _map(self, function) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        also = {rendering: function(clips) for rendering, clips in self.also.items()}
        windows = self.windows and self.windows.map(function)
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, also=also, windows=windows, **tensors)

    def pin_memory(self) -> Batch:
        return self._map(lambda t: t.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """All of it on the device, and its clips drawn there where the workers didn't."""
        there = self._map(lambda t: t.to(device, non_blocking=True))
        if there.windows is None:
            return there
        first, *others = there.windows.renderings
        also = {rendering: draw(there.windows, *rendering) for rendering in others}
        return replace(there, clips=draw(there.windows, *first), also=also, windows=None)
