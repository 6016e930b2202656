"""A small picture of a clip: its middle frame as a JPEG in the page."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from cache.errors import ReskdError
from stages.evaluate.answers_file import Answer
from stages.remote.url_path import Location, UrlPath
from stages.report.parts import Picture, Pictures
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import INDEX
from stages.stream.clip_at_work import clip_at_work
from stages.stream.config import ClipLimits, LoaderConfig
from stages.stream.worker_pool import make_batches
from stages.video.decode import decode_frames

SIDE, QUALITY = 120, 75  # px of the longer side; of JPEG
# A frame is less work than a clip of a training, so it has less time: a page of many videos that hang must end, too.
LOADER = LoaderConfig(workers=1, prefetch=1, limits=ClipLimits(seconds=5, bytes=2**30))


class ClipFrames:
    """Reads frames from the data sets of evaluations, at most `budget` in all: each costs a decode and some kB.

    `seconds`: after so much time no more of them are read.
    """

    def __init__(self, budget: int, seconds: float = 120.0):
        self.budget, self.end = budget, time.monotonic() + seconds
        self._open = lru_cache(open_dataset)

    def pictures(self, caption: str, data: Location, clips: Sequence[tuple[Answer, str]]) -> Pictures:
        """The middle frame of each clip, with its text. A frame that can't be had is left out, and the note says why.

        A process decodes them, within LOADER's limits: a video that crashes or blocks the decoder costs its frame alone.
        """
        clips, sources, reasons = clips[: self.budget], [], {}
        try:
            if isinstance(data, UrlPath):
                raise ReskdError(f"{data} is at a URL, and a report fetches no videos")
            if not os.path.isfile(data / INDEX):  # a pipe would be waited for
                raise ReskdError(f"{data} has no {INDEX}: the data set has moved")
            dataset = self._open(data)
            answers = [answer for answer, _ in clips]
            for made in make_batches(partial(_frame_maker, dataset), answers, 1, LOADER, data=dataset):
                sources.append("" if isinstance(made, ReskdError) else made)
                if isinstance(made, ReskdError):
                    reasons[str(made)] = None
                if time.monotonic() > self.end:
                    reasons["the time for pictures is used up: the videos are long, or block the decoder"] = None
                    break
        except (ReskdError, OSError) as error:
            reasons[str(error)] = None
        sources += [""] * (len(clips) - len(sources))
        self.budget -= len(clips)
        found = tuple(Picture(source, text) for source, (_, text) in zip(sources, clips, strict=True))
        return Pictures(caption, found, f"Without a picture: {'; '.join(list(reasons)[:3])}" if reasons else "")


def _frame_maker(data: Dataset, first: int, step: int) -> Callable[[Answer], str]:
    """What the process makes frames with: see `make_batches`."""
    return partial(_middle_frame, data)


def _middle_frame(data: Dataset, answer: Answer) -> str:
    """A data URI. Raises ReskdError if the data set has no such clip, or it can't be decoded."""
    name = f"{answer.shard}/{answer.key}"
    try:
        with clip_at_work(name):
            rows = data.rows(answer.shard)
            number = next((i for i, row in enumerate(rows) if row.key == answer.key and row.error is None), None)
            if number is None:
                raise ReskdError(f"{data.path} has no such clip")
            row, video = rows[number], data.read(answer.shard, number)
            (frame,), _ = decode_frames(video, np.array([row.start + row.frames // 2]), row.decoder)
            return jpeg_uri(frame)
    except Exception as error:  # the data sets of others: any error there costs the frame alone
        raise ReskdError(f"{name}: {error}") from error


def jpeg_uri(frame: np.ndarray) -> str:
    """A frame, uint8 [H,W,3], as the data URI of a small JPEG."""
    picture, buffer = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
