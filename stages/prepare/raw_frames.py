"""Pictures -> an encoded clip; the only case in which `prepare` encodes, and the only encoder of users' data."""

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image, UnidentifiedImageError

from stages.prepare.annotations import Clip, Frames
from stages.prepare.probing import Probe, Task, probe_bytes
from stages.video.decode import DecodeError

# 4:4:4 keeps every pixel's colour, and odd sizes. On noisy 360p video this keeps 46 dB and more, JPEG at quality 95
# 43 to 44 dB at two thirds of the bytes. `zerolatency`: no lookahead, in which threads may decide otherwise.
PIXELS = "yuv444p"
OPTIONS = {"crf": "4", "preset": "veryfast", "tune": "psnr,zerolatency", "threads": "1"}
GROUP = 12  # frames from one key frame to the next, to which a decoder of few frames must go back
EXACT = Interpolation.POINT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INP


def encoder_identity() -> str:
    """What decides the bytes beside the pictures."""
    options = " ".join(f"{name}={value}" for name, value in OPTIONS.items())
    return f"pyav {av.__version__} libx264 {PIXELS} gop={GROUP} {options}"


def encode_task(clip: Clip, target: Path) -> Task[Probe]:
    """A task that encodes a clip's pictures to `target` and probes that; what can't be encoded is an error in it."""
    return partial(_encode, clip.path, clip.frames, target)


def encode_pictures(pictures: Iterator[np.ndarray], fps: float) -> bytes:
    """uint8 [H, W, 3] RGB, one after the other and all of one size -> an H.264 mp4; equal pictures give equal bytes."""
    file, size, stream = io.BytesIO(), None, None
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        for number, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=OPTIONS)
                (stream.height, stream.width), size = picture.shape[:2], picture.shape
                stream.pix_fmt, stream.codec_context.gop_size = PIXELS, GROUP
            if picture.shape != size:
                raise DecodeError(f"picture {number} is {_size(picture.shape)}, those before it {_size(size)}")
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=PIXELS, interpolation=EXACT, threads=1)))
        container.mux(stream.encode())
    return file.getvalue()


def read_pictures(folder: Path, frames: Frames) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] RGB each. Raises DecodeError, naming the file."""
    for number in range(frames.first, frames.first + frames.count):
        name = frames.template % number
        try:
            with Image.open(folder / name) as picture:
                if picture.mode[0] in "IF":  # 16 bits and more, which `convert` would cut, not scale
                    raise DecodeError(f"{picture.mode} pixels")
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as error:  # Pillow raises nearly every type there is
            raise DecodeError(f"{name} can't be read ({_brief(error)})") from error
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


def _brief(error: Exception) -> str:
    """Without the folder, which differs from machine to machine: reasons are stored."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no picture" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
