"""How clips are read, decoded and put into order."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.config.schema import Config, Positive


class LoaderConfig(Config):
    """Decoding in DataLoader workers. None of it changes what is computed, but for `window`, `streams`, and `render` by a
    grey level of a picture here and there."""

    workers: int | None = Field(None, ge=0, description="decoding processes; one a core (at most 16) where not given")
    prefetch: Positive = Field(4, description="batches that a worker decodes ahead")
    window: Positive = Field(16, description="blocks of 64 rows shuffled together; part of the order")
    streams: Positive = Field(64, description="parallel streams of an epoch; part of the order")
    resident: bool = Field(
        False, description="keep decoded clips, whole, in memory: for small data sets and few workers"
    )
    render: Literal["workers", "device"] = Field("workers", description="where frames of a pack are shrunk to the student's "
                                                 "size; device: where workers can't keep up with a GPU")  # fmt: skip
