"""A video that hangs or eats memory costs `prepare` that video alone."""

import time
from functools import partial

import numpy as np

from stages.prepare.probe_videos import crashed_probe
from stages.prepare.workers import VideoLimits, Workers, video_limits


def work(size: int, seconds: float, memory: int) -> str:
    """What a decoder may do with a video of `size` bytes."""
    with video_limits(size):
        time.sleep(seconds)
        return str(len(np.empty(memory, np.uint8)))


def test_a_video_that_hangs_or_eats_memory_is_tried_again_and_left_out():
    limits = VideoLimits(seconds=0.2, seconds_per_mb=1.0, memory=10**8)
    cases = {
        (0, 0.0, 10): "10",
        (0, 1000.0, 30): "takes too long to decode",
        (10**6, 0.6, 20): "20",  # in time for its size
        (0, 0.0, 10**11): "needs too much memory to decode",
        (0, 1.0, 5 * 10**8): str(5 * 10**8),  # within ten times the limits
    }
    with Workers(2, limits) as workers:
        found = list(workers.map([partial(work, *case) for case in cases], crashed_probe))
    assert [getattr(result, "error", result) for result in found] == list(cases.values())
    assert work(0, 0.5, 10) == "10"  # this process has no limits
