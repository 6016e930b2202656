"""Real videos of many codecs through prepare, cache-teacher and train-student."""

import json

from cache.group import load_manifest
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from tests.runs import cache_config, train_config


def test_from_files_to_a_student(clips, teacher, data, tmp_path):
    csv = tmp_path / "labels.csv"
    files = sorted(p for p in clips.iterdir() if p.is_file())
    csv.write_text("".join(f"{path},{i % 2}\n" for i, path in enumerate(files)))
    prepared = prepare(csv, tmp_path / "data", workers=2)
    lines = [json.loads(line) for line in (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["path"].split("/")[-1] for line in lines} <= {"corrupted.mp4"}
    rows = [row for entry in prepared.shards for row in prepared.rows(entry.name)]
    assert len(rows) + len(lines) == len(files) and any(row.decoder == "pyav" for row in rows)

    real = type(data)(train=tmp_path / "data")
    net = ["size=32", "policy.num_frames=4", "batch_size=7", "schedule.epochs=1"]
    train_student(train_config(tmp_path / "teacher", real, *net))
    config = cache_config(tmp_path / "t.zarr", real, tmp_path / "teacher" / "last.safetensors")
    assert cache_teacher(config, verify=5)["clip_views"] == 2 * len(rows)
    assert load_manifest(config.output).finalised == 2 and open_dataset(real.train).shards == prepared.shards
    result = train_student(
        train_config(tmp_path / "run", real, f"data.cache={config.output}", "losses.feature_mse=1", "batch_size=7")
    )
    assert result["failed_clips"] == 0 and result["steps"] >= 2
