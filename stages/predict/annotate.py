"""A copy of a video with its label and a strip of the probabilities over time below the picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from cache.errors import ReskdError
from cache.store import move_into_place, naming, no_link, partial_file
from stages.predict.steps import Steps
from stages.predict.videos import RowVideo, Video
from stages.runtime.terminal import console, printable
from stages.video.container import open_video
from stages.video.errors import DecodeError, short_reason
from stages.video.frame_times import FrameTimes, frame_times
from stages.video.pyav_decode import upright, whole_frames

ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first one that this FFmpeg has is taken
UNIT = Fraction(1, 10_000)  # seconds: of the times in the output; MPEG-4 takes no finer ones than 1/65535
LEAST_WIDTH = 320  # px: smaller pictures are enlarged, so that the text can be read
COLOURS = [tuple(round(255 * part) for part in colour) for colour in matplotlib.color_sequences["tab10"]]
PAPER, INK = (24, 24, 24), (240, 240, 240)


def annotate_video(
    path: Path, video: Video, steps: Steps, classes: Sequence[str], said: Callable[[float], None] = lambda second: None
) -> None:
    """Write `path`, an MP4 without sound: the video, and below it the class that wins at each time, and the strip.

    Frames are decoded, drawn and encoded one by one, so the memory doesn't grow with the video. `said` is called with the
    second that is reached. Raises ReskdError if the video can't be decoded, or FFmpeg has no encoder or can't encode it.
    """
    encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise ReskdError(f"annotate: this FFmpeg has none of the encoders {', '.join(ENCODERS)}: leave annotate out")
    try:
        with video.open() as data, open_video(data) as (container, stream), _new_file(path) as file:
            found = next(times for times in frame_times(data) if times is not None)
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            with av.open(file, "w", format="mp4") as output:
                writer, last = None, -1
                for second, pixels in _pictures(video, container.decode(stream), found):
                    if writer is None:
                        sheet = _Sheet(pixels.shape[:2], steps, classes)
                        writer = _add_stream(output, encoder, rate, sheet.size)
                    drawn = av.VideoFrame.from_image(sheet.draw(pixels, second))
                    last = max(last + 1, round(second / UNIT))  # times increase
                    drawn.pts, drawn.time_base = last, UNIT
                    output.mux(writer.encode(drawn))
                    said(second)
                output.mux(writer.encode(None))
    except DecodeError as error:
        raise ReskdError(f"annotate: {video.name} can't be decoded to its end: {error}") from error
    except av.FFmpegError as error:
        raise ReskdError(
            f"annotate: {path} can't be encoded by {encoder} ({short_reason(error)}): leave annotate out"
        ) from error


def _pictures(video: Video, frames: Iterator[av.VideoFrame], found: FrameTimes) -> Iterator[tuple[float, np.ndarray]]:
    """The second and the pixels, uint8 [H,W,3], of each frame of a video or clip. Seconds count from its first frame."""
    begin, end = 0, len(found.seconds)
    if isinstance(video, RowVideo):
        begin, end = video.row.start, min(end, video.row.start + video.row.frames)
    for count, frame in enumerate(whole_frames(frames)):
        number = found.index_of(frame.pts, count)
        if number >= end:
            return
        if number >= begin:
            yield float(found.seconds[number] - found.seconds[begin]), upright(frame)


def _add_stream(
    output: av.container.OutputContainer, encoder: str, rate: Fraction, size: tuple[int, int]
) -> av.VideoStream:
    options = {"crf": "23", "preset": "veryfast"} if encoder == "libx264" else {}
    stream = output.add_stream(encoder, rate=rate.limit_denominator(1001), options=options)
    stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
    if encoder != "libx264":
        stream.bit_rate = 4_000_000
    stream.codec_context.time_base = UNIT
    return stream


@contextmanager
def _new_file(path: Path) -> Iterator:
    """A file that gets its name once it is whole."""
    partial = partial_file(path)
    try:
        with open(partial, "wb", opener=no_link) as file, naming(path):
            yield file
            file.flush()
            os.fsync(file.fileno())
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Sheet:
    """The picture that is encoded: a frame, a line of text, the strip."""

    def __init__(self, shape: tuple[int, int], steps: Steps, classes: Sequence[str]):
        """`shape`: height and width of a frame, px."""
        height, width = shape
        self.scale = max(1, -(-LEAST_WIDTH // width))
        self.steps, self.frame = steps, (width * self.scale, height * self.scale)
        self.text = max(14, self.frame[0] // 32)  # px, of the text's height
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        font = str(fonts / "DejaVuSans.ttf")
        self.font = ImageFont.truetype(font, self.text)
        whole = (self.frame[0], self.frame[1] + 4 * self.text)
        self.size = tuple(side + side % 2 for side in whole)  # encoders want even sides
        self.winners, self.best = steps.probabilities.argmax(1), steps.probabilities.max(1)
        self.names = {k: " ".join(printable(classes[k]).split())[:60] for k in {*self.winners.tolist()}}
        _warn_of_missing_signs(font, self.names.values())
        self.strip = self._draw_strip()

    def draw(self, pixels: np.ndarray, time: float) -> Image.Image:
        """The picture of a frame, uint8 [H,W,3], at `time` (seconds from the first frame)."""
        sheet = Image.new("RGB", self.size, PAPER)
        picture = Image.fromarray(pixels)
        sheet.paste(picture if self.scale == 1 else picture.resize(self.frame, Image.Resampling.NEAREST), (0, 0))
        step = int(np.clip(np.searchsorted(self.steps.borders, time, "right") - 1, 0, len(self.winners) - 1))
        top, pen = self.frame[1], ImageDraw.Draw(sheet)
        text = f"{100 * self.best[step]:3.0f} %  {self.names[int(self.winners[step])]}"
        pen.rectangle((4, top + 5, 4 + self.text - 1, top + 4 + self.text), fill=self._colour(step))
        pen.text((10 + self.text, top + 2), text, fill=INK, font=self.font)
        sheet.paste(self.strip, (0, top + 2 * self.text))
        if len(self.winners) > 1:
            x = self._column(time)
            pen.line((x, top + 2 * self.text, x, self.size[1] - 1), fill=INK, width=max(1, self.text // 8))
        return sheet

    def _draw_strip(self) -> Image.Image:
        """A bar for each step: the colour is that of the class that wins, the height its probability."""
        strip = Image.new("RGB", (self.size[0], 2 * self.text), PAPER)
        pen = ImageDraw.Draw(strip)
        for step, best in enumerate(self.best.tolist()):
            left, right = (self._column(self.steps.borders[i]) for i in (step, step + 1))
            pen.rectangle(
                (left, round((1 - best) * (strip.height - 1)), right, strip.height - 1), fill=self._colour(step)
            )
        return strip

    def _column(self, time: float) -> int:
        begin, end = float(self.steps.borders[0]), float(self.steps.borders[-1])
        return round(min(1.0, max(0.0, (time - begin) / (end - begin or 1.0))) * (self.frame[0] - 1))

    def _colour(self, step: int) -> tuple[int, int, int]:
        return COLOURS[int(self.winners[step]) % len(COLOURS)]


def _warn_of_missing_signs(font: str, names: Iterable[str]) -> None:
    """Say which signs of the names the font doesn't have."""
    known = FT2Font(font).get_charmap()
    missing = sorted({sign for name in names for sign in name if ord(sign) not in known})
    if missing:
        console.print(f"[yellow]warning[/] annotate: its font has no signs for {' '.join(missing)[:200]}: they are drawn as "
                      "boxes", highlight=False, soft_wrap=True)  # fmt: skip
