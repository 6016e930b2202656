"""How clips are read, decoded and put into order."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.config.schema import Config, Positive


class LoaderConfig(Config):
    """How DataLoader workers read and decode clips.

    `window` and `streams` change the order of the clips. `render: device` changes some pixels by one grey level. The
    other keys change the speed and the memory alone, not the results.
    """

    workers: int | None = Field(None, ge=0, description="decoding processes of a rank; default: one a core, at most 16")
    prefetch: Positive = Field(4, description="batches that a worker decodes in advance")
    window: Positive = Field(16, description="blocks of 64 rows that are shuffled together; changes the order")
    streams: Positive = Field(64, description="streams that an epoch interleaves; changes the order")
    resident: bool = Field(False, description="keep whole decoded clips in memory: for small data sets and few workers")
    render: Literal["workers", "device"] = Field("workers", description="who shrinks a pack's frames to the student's size; "
                                                 "device: if the workers can't keep up with a GPU")  # fmt: skip
