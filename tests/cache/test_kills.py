"""Kills at every step of a commit: a reader sees a view whole or not at all, and a rerun ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
@pytest.mark.parametrize(
    ("step", "stride", "calls", "states"),
    [
        ("first_commit", 3, 50, 15),
        ("growth", 3, 50, 15),
        ("another_target", 3, 30, 7),
        ("everything", 11, 150, 12),
        ("teacher_time", 1, 4, 3),  # not finalised; finalised, with all three logs, two of them, or one
    ],
)
def test_killed_at_any_call_a_commit_is_whole_or_not_there_and_a_rerun_ends_alike(
    tmp_path, step, stride, calls, states
):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DRIVER.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(DRIVER), step, str(tmp_path), str(stride)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    # Up to 8 arrays, each with metadata, a chunk and a folder: the kills did fall between the steps.
    assert result["calls"] > calls and result["states"] > states
