"""`bench bad-videos`, on few videos: what it says."""

import json
import math

from stages.bench.bad_videos import bad_videos
from stages.bench.bad_videos.made_videos import encode_video, numbered_frames
from tests.runs import command


def test_few_bad_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_videos, "QUICK", bad_videos.Setup(mutants=6, decodes=30, each=40, workers=1))
    (tmp_path / "a.mp4").write_bytes(encode_video(numbered_frames(8)))
    (tmp_path / "README.md").write_text("no video")
    command("bench", "bad-videos", "--quick", "--videos", tmp_path, "--json", tmp_path / "out.json")
    found = {figure["name"]: figure for figure in json.loads((tmp_path / "out.json").read_text())}
    assert all(math.isfinite(figure["value"]) for figure in found.values())
    assert found["mutants"]["value"] == 6 and found["kinds"]["value"] == 2
    for name in ("kinds in containers", "mutants", "bombs"):
        served = sum(found[f"{name}: served by {by}"]["value"] for by in bad_videos.NAMES.values())
        assert served == found[name]["value"]
        assert found[f"{name}: crashes and hangs"]["ok"] and found[f"{name}: other frames"]["ok"]
    assert found["bombs: the largest"]["goal"] == "<= 200" and found["memory that 30 decodes leave"]["goal"] == "<= 20"
