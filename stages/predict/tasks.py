"""What the decoding processes of `predict` are asked, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from cache.view import ViewPolicy


@dataclass(frozen=True)
class Task:
    """Work on a video: a look at it, and, if that is all, the pictures of its windows; or those of `window` and the next."""

    video: int
    window: int | None = None  # None: the look


@dataclass(frozen=True)
class Facts:
    """What a look at a video finds. `seconds` is None for a clip of a data set that is not cut into windows."""

    frames: int
    seconds: float | None
    windows: int
    views: int  # of each window
    starts: np.ndarray  # float64 [windows], seconds
    ends: np.ndarray  # float64 [windows], seconds


@dataclass(frozen=True)
class Answer:
    """The answer to a task."""

    video: int
    facts: Facts | None = None  # in the answer to a look
    clips: Tensor | None = None  # uint8 [windows,V,T,3,S,S]
    decoder: str | None = None  # that served the frames
    error: str | None = None  # why the video can't be read

    def pin_memory(self) -> Answer:
        return self if self.clips is None else replace(self, clips=self.clips.pin_memory())


@dataclass(frozen=True)
class Views:
    """How videos are cut and seen."""

    policy: ViewPolicy
    size: int
    render_via: int | None
    window: float | None  # seconds
    hop: float | None  # seconds
    at_once: int  # windows in one answer
