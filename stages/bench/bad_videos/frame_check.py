"""Whether a video is served right: any set of its frames equals one sequential decode of the same bytes, or is refused."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import psutil

from stages.video.container import open_video
from stages.video.decode import decode_frames, probe
from stages.video.errors import DecodeError, short_reason
from stages.video.pyav_decode import upright, whole_frames

SETS = 5  # random sets of frames that are asked of a video


@dataclass(frozen=True)
class Outcome:
    """`served`: the decoder, or "refused". `wrong`: what is wrong with a frame; "" if nothing is. `peak`: bytes that the
    process grew, at most. `seconds`: of CPU."""

    served: str
    wrong: str
    seconds: float
    peak: int
    reason: str = ""  # why it was refused


def check_video(data: bytes, seed: int = 0, sets: int = SETS) -> Outcome:
    """Probe a video quickly and whole, ask it for `sets` random sets of frames, and compare them.

    After the whole check, each frame must equal that of the sequential decode. After the quick check a frame may also be
    one that the sequential decode doesn't reach, because it meets damage before.
    """
    before, start = _reset_peak(), time.process_time()
    quick, reason = _probed(data, False)
    whole, _ = _probed(data, True)
    wrong = ""
    if quick or whole:
        frames, end = _sequential(data)
        if whole and len(frames) != whole.frames:
            wrong = f"{len(frames)} frames decode one after the other ({end}); the whole check found {whole.frames}"
        for info, all_right in ((whole, True), (quick, False)):
            if info is not None and not wrong:
                wrong = _compare(data, frames, info, all_right, seed, sets)
    if whole and not quick:
        wrong = wrong or "the whole check accepts what the quick one refuses"
    served = quick.decoder if quick else "refused"
    return Outcome(served, wrong, time.process_time() - start, _peak() - before, reason)


def probe_cost(data: bytes) -> Outcome:
    """Only the quick check, and what it takes."""
    before, start = _reset_peak(), time.process_time()
    info, reason = _probed(data, False)
    return Outcome(info.decoder if info else "refused", "", time.process_time() - start, _peak() - before, reason)


def opens(path: Path) -> bool:
    """Whether a file is a video, however damaged its frames are."""
    try:
        with open_video(path.read_bytes()):
            return True
    except DecodeError:
        return False


def memory_growth(paths: Sequence[Path], count: int) -> int:
    """Bytes by which this process is larger after `count` decodes of random frames than after a tenth of them.

    Files that are refused are probed in their turn; the others are probed once."""
    rng, videos = np.random.default_rng(0), [path.read_bytes() for path in paths]
    infos = [_probed(data, False)[0] for data in videos]
    for i in range(count):
        data, info = videos[i % len(videos)], infos[i % len(videos)]
        with suppress(DecodeError):
            if info is None:
                probe(data)
            else:
                decode_frames(data, rng.integers(0, info.frames, 4), info.decoder)
        if i == count // 10:
            before = _resident()
    return _resident() - before


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _probed(data: bytes, every_frame: bool):
    try:
        return probe(data, every_frame=every_frame), ""
    except DecodeError as error:
        return None, str(error)


def _sequential(data: bytes) -> tuple[list[bytes], str]:
    """Digests of the frames, one after the other, up to the first error; and this error, or that there was none."""
    found = []
    try:
        with open_video(data) as (container, stream):
            for frame in whole_frames(container.decode(stream)):
                found.append(_digest(upright(frame)))
    except Exception as error:  # PyAV raises errors of many types
        return found, short_reason(error)
    return found, "no error"


def _compare(data: bytes, frames: list[bytes], info, all_right: bool, seed: int, sets: int) -> str:
    rng = np.random.default_rng(seed)
    count = info.frames
    for _ in range(sets):
        asked = rng.integers(0, count, rng.integers(1, 9))
        asked = asked if len(asked) > 1 or rng.random() < 0.8 else np.array([count - 1])
        try:
            pictures, by = decode_frames(data, asked, info.decoder)
        except DecodeError as error:
            if all_right or asked.max() < len(frames):
                return f"{asked.tolist()} of {count}: {short_reason(error)}"
            continue
        for index, picture in zip(asked.tolist(), pictures, strict=True):
            if index < len(frames) and _digest(picture) != frames[index]:
                where = frames.index(_digest(picture)) if _digest(picture) in frames else "none"
                return f"{asked.tolist()} of {count} by {by}: frame {index} is that of {where}"
    return ""


def _digest(picture: np.ndarray) -> bytes:
    return blake2b(np.ascontiguousarray(picture), digest_size=16).digest() + bytes(str(picture.shape), "ascii")


def _reset_peak() -> int:
    """The size of this process, from which `_peak` grows."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak of the process's whole life
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _peak()


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
