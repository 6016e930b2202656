"""`bench remote` on a few tiny clips: all its figures come, and what doesn't hang on the clock is right."""

import json
import math
import os
from contextlib import nullcontext

import pytest

from cache.errors import ReskdError
from stages.bench import metadata, remote, s3_server
from stages.bench.stage1_runs import TINY
from stages.bench.videos import Kind
from tests.runs import command


def test_training_from_a_store(s3, tmp_path, monkeypatch, few_processes):
    monkeypatch.setattr(remote, "store_nearby", lambda folder: nullcontext(s3.port))
    monkeypatch.setattr(remote, "BUCKET", f"{s3.bucket}-bench")
    monkeypatch.setattr(remote, "TEACHER", TINY)
    monkeypatch.setattr(remote, "SIZE", 32)
    small = {"kind": Kind(64, 48, 6), "clips": 2, "times": 16, "seconds": 0.5, "epochs": 2, "cached": 9, "runs": 1}
    monkeypatch.setattr(remote, "QUICK", remote.Setup(many=256, streams=1, window=1, **small))
    command("bench", "remote", "--quick", "--folder", tmp_path / "videos", "--json", tmp_path / "out.json")
    found = {figure["name"]: figure for figure in json.loads((tmp_path / "out.json").read_text())}
    assert all(math.isfinite(figure["value"]) for figure in found.values())
    assert found["waiting, first epoch"]["goal"] == "<= 10" and found["waiting, later epochs"]["goal"] == "<= 2"
    for room in ("half", "the working set"):
        assert found[f"bytes fetched, room for {room} ÷ the optimum"]["ok"]
        assert found[f"bytes fetched by LRU, room for {room} ÷ the optimum"]["value"] >= 1
        assert found[f"requests ÷ blocks missed, room for {room}"]["value"] >= 1
    assert found["stage one from and into the store ÷ local, a further clip·view"]["goal"] == ">= 0.95"
    assert "AWS_ENDPOINT_URL" not in os.environ or str(s3.port) in os.environ["AWS_ENDPOINT_URL"]


def test_without_the_server_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(s3_server.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(s3_server.shutil, "which", lambda name: None)
    with pytest.raises(ReskdError, match="--group integration"):
        s3_server.start_server(tmp_path)


def test_metadata_of_many_shards(s3, tmp_path, monkeypatch, few_processes):
    monkeypatch.setattr(metadata, "store_nearby", lambda folder: nullcontext(s3.port))
    monkeypatch.setattr(metadata, "QUICK", metadata.Setup(shards=3, clips=200, read=2))
    command("bench", "metadata", "--quick", "--json", tmp_path / "out.json")
    found = {figure["name"]: figure for figure in json.loads((tmp_path / "out.json").read_text())}
    assert len(found) == 4 and all(figure["ok"] for figure in found.values())
