"""One micro-batch, which a student and the losses read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from stages.runtime.device_copy import Copy
from stages.video.render import Rendering


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B views. In training, each view belongs to another row."""

    clips: Tensor  # uint8 [B,T,3,S,S]; zeros if not usable
    labels: Tensor  # int64 [B]; -1 if unlabelled; the first of several labels
    multi_hot: Tensor  # float32 [B,K]
    usable: Tensor  # bool [B]; False if the view could not be decoded
    index: Tensor  # int64 [B,3] shard, row, view
    logits: Tensor | None = None  # float32 [B,K]
    features: Tensor | None = None  # [B,T',g,g',d] as stored: float16, or int8 codes
    # The same views in other renderings, each as `clips`.
    other_renderings: Mapping[Rendering, Tensor] = field(default_factory=dict)
    failures: tuple[str, ...] = ()  # "shard/key: reason" for each row with a view that is not usable
    fallbacks: tuple[str, ...] = ()  # "shard/key: reason" for each row that another decoder served than the index names

    def with_rendering(self, rendering: Rendering | None) -> Batch:
        """The batch whose `clips` are those of one of the other renderings; for None, the batch itself."""
        return self if rendering is None else replace(self, clips=self.other_renderings[rendering])

    def _map(self, function) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        other_renderings = {rendering: function(clips) for rendering, clips in self.other_renderings.items()}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, other_renderings=other_renderings, **tensors)

    def pin_memory(self) -> Batch:
        return self._map(lambda t: t.pin_memory())

    def copied(self, copy: Copy) -> Batch:
        """The batch on the device of `copy`: see `copier`."""
        return self._map(copy)
