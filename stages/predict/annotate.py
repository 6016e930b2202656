"""A copy of a video with its label and a strip of the probabilities over time below the picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cache.errors import ReskdError
from cache.store import move_into_place, naming, no_link, partial_file
from stages.predict.steps import Steps
from stages.predict.videos import RowVideo, Video
from stages.runtime.terminal import printable
from stages.video.container import open_video
from stages.video.errors import DecodeError
from stages.video.pyav_decode import upright, whole_frames

ENCODERS = ("libx264", "libopenh264", "h264", "mpeg4")  # the first one that this FFmpeg has is taken
UNIT = Fraction(1, 10_000)  # seconds: of the times in the output; MPEG-4 takes no finer ones than 1/65535
LEAST_WIDTH = 320  # px: smaller pictures are enlarged, so that the text can be read
COLOURS = [tuple(round(255 * part) for part in colour) for colour in matplotlib.color_sequences["tab10"]]
PAPER, INK = (24, 24, 24), (240, 240, 240)


def annotate_video(
    path: Path, video: Video, steps: Steps, classes: Sequence[str], said: Callable[[float], None] = lambda second: None
) -> None:
    """Write `path`, an MP4 without sound: the video, and below it the class that wins at each time, and the strip.

    Frames are decoded, drawn and encoded one by one, so the memory doesn't grow with the video. `said` is called with the
    second that is reached. Raises ReskdError if the video can't be decoded, or FFmpeg has no encoder.
    """
    encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise ReskdError(f"annotate: this FFmpeg has none of the encoders {', '.join(ENCODERS)}: leave annotate out")
    try:
        with video.open() as data, open_video(data) as (container, stream), _new_file(path) as file:
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            with av.open(file, "w", format="mp4") as output:
                writer, last = None, -1
                for second, pixels in _pictures(video, container, stream, float(rate)):
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


def _pictures(
    video: Video, container: av.container.InputContainer, stream: av.VideoStream, rate: float
) -> Iterator[tuple[float, np.ndarray]]:
    """The second and the pixels, uint8 [H,W,3], of each frame of a video or clip. Seconds count from its first frame."""
    start, frames = (video.row.start, video.row.frames) if isinstance(video, RowVideo) else (0, None)
    zero = None
    for number, frame in enumerate(whole_frames(container.decode(stream))):
        if frames is not None and number >= start + frames:
            return
        if number >= start:
            second = float(frame.time) if frame.time is not None else number / rate
            zero = second if zero is None else zero
            yield second - zero, upright(frame)


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
        self.steps, self.classes, self.frame = steps, classes, (width * self.scale, height * self.scale)
        self.text = max(14, self.frame[0] // 32)  # px, of the text's height
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), self.text)
        whole = (self.frame[0], self.frame[1] + 4 * self.text)
        self.size = tuple(side + side % 2 for side in whole)  # encoders want even sides
        self.winners, self.best = steps.probabilities.argmax(1), steps.probabilities.max(1)
        self.strip = self._draw_strip()

    def draw(self, pixels: np.ndarray, time: float) -> Image.Image:
        """The picture of a frame, uint8 [H,W,3], at `time` (seconds from the first frame)."""
        sheet = Image.new("RGB", self.size, PAPER)
        picture = Image.fromarray(pixels)
        sheet.paste(picture if self.scale == 1 else picture.resize(self.frame, Image.Resampling.NEAREST), (0, 0))
        step = int(np.clip(np.searchsorted(self.steps.borders, time, "right") - 1, 0, len(self.winners) - 1))
        top, pen = self.frame[1], ImageDraw.Draw(sheet)
        label = printable(self.classes[self.winners[step]]).replace("\n", " ")
        text = f"{100 * self.best[step]:3.0f} %  {label[:60]}"
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
