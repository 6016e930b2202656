"""How clips are read, decoded and put into order."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from stages.config.schema import Config, Positive
from stages.config.sizes import SizeText


class ClipLimits(Config):
    """What a decoding process may take for one clip: time, and memory beside what it has before the clip.

    The process ends at a limit, and the clip is tried once more, with ten times the limits. If it fails again, it is left
    out by name. Clips that are decoded without decoding processes (`loader.workers: 0`) have no limits.
    """

    seconds: float = Field(60.0, gt=0, description="of one decoding: all views of a clip that a batch has")
    bytes: Positive = Field(4 * 2**30, description="of private memory, in the same time")


class LocalConfig(Config):
    """The folder for blocks of data sets that lie at URLs. All ranks of a machine share it. Other data sets don't use it.

    What a run leaves there is read by the next one on the same data. Delete the folder to have the room back.
    """

    path: Path | None = Field(
        None, description="a folder of this machine; default: one in the system's temporary folder"
    )
    budget: SizeText | None = Field(
        None,
        description="the most that its blocks may take, such as 500GB; default: half of the disk's free room. Rows of the "
        "index come beside them: some 200 kB for 1,000 clips",
    )


class LoaderConfig(Config):
    """How decoding processes ("workers") read and decode clips.

    `window` and `streams` change the order of the clips. The other keys change the speed and the memory alone, not the
    results.
    """

    removed: ClassVar = {"render": "workers"}
    workers: int | None = Field(None, ge=0, description="decoding processes of a rank; default: one a core, at most 16")
    prefetch: Positive = Field(4, description="batches that a worker decodes in advance")
    window: Positive = Field(16, description="blocks of 64 rows that are shuffled together; changes the order")
    streams: Positive = Field(64, description="streams that an epoch interleaves; changes the order")
    resident: bool = Field(False, description="keep whole decoded clips in memory: for small data sets and few workers")
    limits: ClipLimits = Field(ClipLimits(), description="what one clip may take before it is left out")
    local: LocalConfig = Field(LocalConfig(), description="where clips of data sets at URLs are kept on this machine")
