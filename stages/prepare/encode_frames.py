"""Pictures -> an encoded clip. Nothing else in the program encodes users' data; all other videos are copied."""

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image, UnidentifiedImageError

from stages.prepare.clips import Clip, Frames
from stages.prepare.probe_videos import Probe, probe_bytes
from stages.prepare.workers import Task
from stages.video.errors import DecodeError

# 4:4:4 keeps the colour of every pixel, and allows odd sizes. On noisy 360p video this keeps at least 46 dB; JPEG at
# quality 95 keeps 43 to 44 dB with two thirds of the bytes. `zerolatency` turns the lookahead off, because its result
# may depend on threads.
PIXEL_FORMAT = "yuv444p"
OPTIONS = {"crf": "4", "preset": "veryfast", "tune": "psnr,zerolatency", "threads": "1"}
GROUP = 12  # frames from one key frame to the next: a decoder that wants one frame begins at a key frame
EXACT_COLOURS = Interpolation.POINT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INP


def encoder_identity() -> str:
    """All that decides the encoded bytes, apart from the pictures."""
    options = " ".join(f"{name}={value}" for name, value in OPTIONS.items())
    return f"pyav {av.__version__} libx264 {PIXEL_FORMAT} gop={GROUP} {options}"


def encode_task(clip: Clip, target: Path) -> Task[Probe]:
    """A task that encodes a clip's pictures to the file `target` and probes it. If that fails, the Probe has an error."""
    return partial(_encode, clip.path, clip.frames, target)


def encode_pictures(pictures: Iterator[np.ndarray], fps: float) -> bytes:
    """uint8 [H, W, 3] RGB pictures of one size -> an H.264 mp4. Equal pictures give equal bytes.

    Raises DecodeError if the sizes differ, and av.FFmpegError if the pictures can't be encoded.
    """
    file, size, stream = io.BytesIO(), None, None
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        for number, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=OPTIONS)
                (stream.height, stream.width), size = picture.shape[:2], picture.shape
                stream.pix_fmt, stream.codec_context.gop_size = PIXEL_FORMAT, GROUP
            if picture.shape != size:
                raise DecodeError(
                    f"picture {number} is {_size_text(picture.shape)}, those before it {_size_text(size)}"
                )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=PIXEL_FORMAT, interpolation=EXACT_COLOURS, threads=1)))
        container.mux(stream.encode())
    return file.getvalue()


def read_pictures(folder: Path, frames: Frames) -> Iterator[np.ndarray]:
    """The pictures, uint8 [H, W, 3] RGB. Raises DecodeError, which names the file, if one can't be read."""
    for number in range(frames.first, frames.first + frames.count):
        name = frames.template % number
        try:
            with Image.open(folder / name) as picture:
                if picture.mode[0] in "IF":  # 16 bits or more: `convert` would clip the values, not scale them
                    raise DecodeError(f"{picture.mode} pixels")
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as error:  # Pillow raises many types of errors
            raise DecodeError(f"{name} can't be read ({_reason(error)})") from error
        yield pixels


def _encode(folder: Path, frames: Frames, target: Path) -> Probe:
    try:
        data = encode_pictures(read_pictures(folder, frames), frames.fps)
    except DecodeError as error:
        return Probe("", None, str(error))
    except av.FFmpegError as error:
        return Probe("", None, f"can't be encoded ({error})")
    probe = probe_bytes(data)
    if probe.info is not None and probe.info.frames != frames.count:
        return Probe("", None, f"{frames.count} pictures became {probe.info.frames} frames")
    if probe.error is None:
        target.write_bytes(data)
    return probe


def _reason(error: Exception) -> str:
    """The error without its folder: reasons are stored, and the folder differs between machines."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no picture" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _size_text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
