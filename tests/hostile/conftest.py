"""A small data set, of which tests change copies."""

from pathlib import Path

import pytest

from tests.hostile.attempts import accepted
from tests.media import encode_video, moving_square


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Three clips of two classes in one tar."""
    root = tmp_path_factory.mktemp("prepared")
    for i, name in enumerate(("a/x.mp4", "a/y.mp4", "b/z.mp4")):
        (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "videos" / name).write_bytes(encode_video(moving_square(4, 32, 32, seed=i)))
    accepted("prepare", root / "videos", "--output", root / "data", "--set", "workers=0")
    return root / "data"
