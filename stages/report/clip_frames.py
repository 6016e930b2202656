"""A small picture of a clip: its middle frame as a JPEG in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from cache.errors import ReskdError
from stages.evaluate.answers_file import Answer
from stages.report.parts import Picture, Pictures
from stages.shards.dataset import Dataset, open_dataset
from stages.video.decode import decode_frames

SIDE, QUALITY = 120, 75  # px of the longer side; of JPEG


class ClipFrames:
    """Reads frames from the data sets of evaluations, at most `budget` in all: each costs a decode and some kB."""

    def __init__(self, budget: int):
        self.budget = budget
        self._open = lru_cache(open_dataset)

    def pictures(self, caption: str, data: Path, clips: Sequence[tuple[Answer, str]]) -> Pictures:
        """The middle frame of each clip, with its text. A frame that can't be had is left out, and the note says why."""
        found, reasons = [], {}
        for answer, text in clips[: self.budget]:
            source = ""
            try:
                source = _middle_frame(self._open(data), answer)
            except (ReskdError, OSError) as error:  # the data set has moved, or the video is damaged
                reasons[str(error)] = None
            found.append(Picture(source, text))
        self.budget -= len(found)
        return Pictures(caption, tuple(found), f"Without a picture: {'; '.join(list(reasons)[:3])}" if reasons else "")


def _middle_frame(data: Dataset, answer: Answer) -> str:
    """A data URI. Raises ReskdError if the data set has no such clip, or it can't be decoded."""
    rows = data.rows(answer.shard)
    number = next((i for i, row in enumerate(rows) if row.key == answer.key and row.error is None), None)
    if number is None:
        raise ReskdError(f"{data.path} has no clip {answer.shard}/{answer.key}")
    row = rows[number]
    (frame,), _ = decode_frames(data.read(answer.shard, number), np.array([row.start + row.frames // 2]), row.decoder)
    return jpeg_uri(frame)


def jpeg_uri(frame: np.ndarray) -> str:
    """A frame, uint8 [H,W,3], as the data URI of a small JPEG."""
    picture, buffer = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
