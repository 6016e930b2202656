"""From annotations as they are published to a distilled student's score, by each data set's own configs.

`prepare NAME` -> the teacher's config -> stage one's -> ResKD's -> `evaluate` by the protocol, all through the command
line, scaled down by --set alone.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from stages.demo.digits import draw_clip, encode_clip
from stages.shards.dataset import open_dataset
from tests.media import encode_video
from tests.runs import command, sets

ROOT = Path(__file__).parents[2]
CLASSES = ("playing cards", "surfing", "zumba")
RESNET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1]}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": [2, 2, 2], "patch_size": [2, 4, 4]}


def video(number: int, container: str = "mp4") -> bytes:
    clip = draw_clip(split="train", label=number % 3, seed=0, index=number, frames=16)
    return encode_clip(clip) if container == "mp4" else encode_video(clip, container="webm", codec="libvpx-vp9")


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def clips(split: str) -> list[tuple[int, int]]:
    """(number, class) of a split's videos; a number is a video's own."""
    return [(n, n % 3) for n in (range(12) if split == "train" else range(12, 18))]


def kinetics(folder: Path, split: str) -> tuple[Path, list]:
    lines = [["label", "youtube_id", "time_start", "time_end", "split"]]
    for n, label in clips(split):
        lines.append([CLASSES[label], f"id-{n:08d}", n, n + 10, split])
        write(folder / "videos" / split / CLASSES[label] / f"id-{n:08d}_{n:06d}_{n + 10:06d}.mp4", video(n))
    file = folder / f"kinetics_{split}.csv"
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows(lines)
    return file, []


def mini_kinetics(folder: Path, split: str) -> tuple[Path, list]:
    lines = []
    for n, label in clips(split):
        name = f"{split}/{CLASSES[label]}/id{n}_000001_000011"
        write(folder / "videos" / f"{name}.mp4", video(n))
        lines.append(f"{name} 16 {label}\n")
    file = folder / f"mini_{split}_videofolder.txt"
    write(file, "".join(lines))
    write(folder / "classes.txt", "\n".join(CLASSES))
    return file, ["--class-order", folder / "classes.txt"]


def something(folder: Path, split: str) -> tuple[Path, list]:
    templates = ["Holding [something]", "Pushing [something] off of [something]", "Tearing [something] into two pieces"]
    entries = []
    for n, label in clips(split):
        template = templates[label]
        text = template.replace("[something]", "a cup")
        entries.append({"id": str(n), "label": text, "template": template, "placeholders": ["a cup"]})
        write(folder / "videos" / f"{n}.webm", video(n, "webm"))
    file = folder / f"something-something-v2-{'train' if split == 'train' else 'validation'}.json"
    write(file, json.dumps(entries))
    names = [template.replace("[", "").replace("]", "") for template in templates]
    order = folder / "something-something-v2-labels.json"
    write(order, json.dumps({name: str(i) for i, name in enumerate(names)}))
    return file, ["--class-order", order]


def activitynet(folder: Path, split: str) -> tuple[Path, list]:
    database = {}
    for subset, part in (("training", "train"), ("validation", "val")):
        for n, label in clips(part):
            labels = [label, (label + 1) % 3] if n % 4 == 0 else [label]
            annotations = [{"label": CLASSES[c], "segment": [0.1 * i, 0.1 * i + 1]} for i, c in enumerate(labels)]
            database[f"id{n:09d}"] = {
                "duration": 2.0, "subset": subset, "resolution": "40x40", "annotations": annotations,
                "url": f"https://www.youtube.com/watch?v=id{n:09d}",
            }  # fmt: skip
            write(folder / "videos" / f"v_id{n:09d}.mp4", video(n))
    file = folder / "activity_net.v1-3.min.json"
    write(file, json.dumps({"database": database, "taxonomy": [], "version": "VERSION 1.3"}))
    return file, ["--split", split]


def fcvid(folder: Path, split: str) -> tuple[Path, list]:
    lines = []
    for n, label in clips(split):
        write(folder / "videos" / f"{CLASSES[label]}/vid_{n}.mp4", video(n))
        lines.append(f"{CLASSES[label]}/vid_{n},16,{label}" + (f",{(label + 1) % 3}" if n % 4 == 0 else "") + "\n")
    file = folder / f"fcvid_{split}_split.txt"
    write(file, "".join(lines))
    write(folder / "classes.txt", "\n".join(CLASSES))
    return file, ["--class-order", folder / "classes.txt"]


class Set(NamedTuple):
    """A publisher's format, its configs (teacher, stage one, ResKD), and the views of its protocol."""

    name: str
    publish: Callable[[Path, str], tuple[Path, list]]
    configs: tuple[str, str, str]
    protocol: str
    args: dict = RESNET


SETS = [
    Set("actnet", activitynet, ("actnet/tsn_r152_224", "actnet/cache_r152", "actnet/rkd_r152_r50_112"), "1x1"),
    Set("fcvid", fcvid, ("fcvid/tsn_r152_224", "fcvid/cache_r152", "fcvid/rkd_r152_r50_112"), "1x1"),
    Set("minik", mini_kinetics, ("minik/tsn_r152_224", "minik/cache_r152", "minik/rkd_r152_r50_112"), "1x1"),
    Set("sthv2", something, ("sthv2/tsm_r50_224", "sthv2/cache_tsm_r50", "sthv2/rkd_tsm_r50_112"), "2x3"),
    Set("kinetics", kinetics,
        ("k400/slowonly_r50_224", "k400/cache_slowonly_r50", "k400/rkd_slowonly_r50_112"), "10x3"),
    Set("kinetics", kinetics, ("k400/swin_b_224", "k400/cache_swin_b", "k400/rkd_swin_s_112"), "4x3", SWIN),
]  # fmt: skip


@pytest.mark.parametrize("a", SETS, ids=lambda a: a.configs[2].replace("/", "-"))
def test_a_published_data_set_to_a_students_score(a, tmp_path):
    for split in ("train", "val"):
        file, more = a.publish(tmp_path / "published", split)
        command("prepare", a.name, "--annotations", file, "--videos", tmp_path / "published/videos", *more,
            "--output", tmp_path / split, "--set", "workers=0")  # fmt: skip
    train = open_dataset(tmp_path / "train")
    assert [e.clips for e in train.shards] == [12] and len(train.classes) == 3
    assert open_dataset(tmp_path / "val").classes == train.classes

    backbone = "swin3d_t" if a.args is SWIN else "resnet18"
    net = {"model.backbone": backbone, "model.args": a.args, "model.num_frames": 4, "init": {"source": "scratch"}}
    small = {
        **net, "data.train": str(tmp_path / "train"), "data.val": str(tmp_path / "val"), "loader.workers": 0,
        "schedule": {"name": "cosine", "epochs": 1}, "batch_size": 4, "accumulate": 1,
    }  # fmt: skip
    teacher, stored, student = (ROOT / "configs" / f"{name}.yaml" for name in a.configs)
    command("train-student", "--config", teacher, *sets(small | {"output": str(tmp_path / "teacher"), "size": 32,
        "policy.num_frames": 4}))  # fmt: skip
    command("cache-teacher", "--config", stored, *sets({
        "data": str(tmp_path / "train"), "output": str(tmp_path / "t.zarr"), "views": 2, "loader.workers": 0,
        "teacher.checkpoint": str(tmp_path / "teacher/last.safetensors"), "teacher.batch_size": 4,
        "policy.num_frames": 4, **({"targets.features.dims": 8} if a.args is SWIN else {}),
    }))  # fmt: skip
    command("train-student", "--config", student, *sets(small | {"output": str(tmp_path / "student"), "size": 16,
        "render_via": 32, "data.cache": str(tmp_path / "t.zarr")}))  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines()]
    terms = next(row for row in rows if row["kind"] == "train")["terms"]
    distilling = "logit_map_kl" if a.args is SWIN else "feature_mse"
    assert set(terms) == {"cross_entropy", distilling} and terms[distilling]["value"] > 0

    command("evaluate", tmp_path / "student/last.safetensors", "--data", tmp_path / "val", "--protocol", a.protocol,
        "--output", tmp_path / "score.json", "--set", "loader.workers=0")  # fmt: skip
    score = json.loads((tmp_path / "score.json").read_text())
    clips_in_time, crops = map(int, a.protocol.split("x"))
    assert score["clips"] == 6 and score["size"] == 16 and score["views"] == clips_in_time * crops
    assert score["gflops"] == pytest.approx(score["gmacs"] * score["views"])
    assert score["headline"] == ("map" if a.name in ("actnet", "fcvid") else "top1")
