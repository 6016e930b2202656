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
    other_renderings: Mapping[Rendering, Tensor] = field(
        default_factory=dict
    )  # the same views at other sizes, as `clips`
    windows: Windows | None = None
    failures: tuple[str, ...] = ()  # shard/key: reason, one for each row with a view that is not usable
    fallbacks: tuple[str, ...] = ()  # shard/key: decoded by another decoder than the index names

    def seen_at(self, rendering: Rendering | None) -> Batch:
        """With the clips that were rendered `also` so; None: as it is."""
        return self if rendering is None else replace(self, clips=self.other_renderings[rendering])

    def _map(self, function) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        other_renderings = {rendering: function(clips) for rendering, clips in self.other_renderings.items()}
        windows = self.windows and self.windows.map(function)
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, other_renderings=other_renderings, windows=windows, **tensors)

    def pin_memory(self) -> Batch:
        return self._map(lambda t: t.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """All of it on the device, and its clips drawn there where the workers didn't."""
        on_device = self._map(lambda t: t.to(device, non_blocking=True))
        if on_device.windows is None:
            return on_device
        first, *others = on_device.windows.renderings
        other_renderings = {rendering: draw(on_device.windows, *rendering) for rendering in others}
        return replace(
            on_device, clips=draw(on_device.windows, *first), other_renderings=other_renderings, windows=None
        )
