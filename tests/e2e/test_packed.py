"""From videos to a student that never decodes one, through the command line."""

import json

from tests.runs import POLICY, QUICK, command, sets


def test_prepare_teacher_cache_pack_student_evaluate(data, tmp_path):
    for split in ("train", "val"):
        command("prepare", data.videos / split, "--output", tmp_path / split, "--limit", 20, "--set", "workers=0")
    quick = [part for change in (*QUICK, "loader.resident=false", "schedule.epochs=1") for part in ("--set", change)]
    paths = {"data.train": str(tmp_path / "train"), "data.val": str(tmp_path / "val")}
    teacher, student, cache = tmp_path / "teacher", tmp_path / "student", tmp_path / "t.zarr"
    command("train-student", *quick, *sets({**paths, "output": str(teacher), "size": 32, "policy": POLICY}))
    cached = {
        "data": str(tmp_path / "train"),
        "output": str(cache),
        "policy": POLICY,
        "views": 2,
        "loader": {"workers": 0},
    }
    command("cache-teacher", *sets({**cached, "teacher.checkpoint": str(teacher / "last.safetensors")}))

    packed = ["pack", "--data", tmp_path / "train", "--cache", cache, "--size", 16, "--set", "loader.workers=0"]
    assert "what it would do" in command(*packed, "--output", tmp_path / "pack", "--dry-run")
    assert not (tmp_path / "pack").exists()
    assert "packed 20 clips" in " ".join(command(*packed, "--output", tmp_path / "pack", "--psnr", 33).split())
    command("pack", "--data", tmp_path / "val", "--output", tmp_path / "val_pack", "--frames", "all", "--height", 24)

    for tar in [*(tmp_path / "train").glob("*.tar"), *(tmp_path / "val").glob("*.tar")]:
        tar.unlink()
    packs = {"data.pack": str(tmp_path / "pack"), "data.val_pack": str(tmp_path / "val_pack")}
    run = {**paths, **packs, "output": str(student), "data.cache": str(cache), "losses.feature_mse": 1, "size": 16}
    command("train-student", *quick, *sets(run))
    assert json.loads((student / "result.json").read_text())["failed_clips"] == 0
    score = tmp_path / "score.json"
    command("evaluate", student / "last.safetensors", "--data", tmp_path / "val", "--pack", tmp_path / "val_pack",
            "--output", score)  # fmt: skip
    assert json.loads(score.read_text())["clips"] == 20
