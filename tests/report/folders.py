"""Folders of runs and files of evaluations, as the report reads them."""

import html
import json
import re

import yaml


def make_run(folder, rows=6, *, seed=0, lr=0.1, top1=10.0, finished=True, cut=False, **config):
    """A run's folder, with rows as the training loop writes them."""
    folder.mkdir(parents=True)
    values = {"output": str(folder), "data": {"train": "data/train"}, "optim": {"lr": lr}, "seed": seed, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    lines = []
    for step in range(1, rows + 1):
        terms = {"cross_entropy": {"value": 1 / step, "weight": 2.0}}
        lines.append({"kind": "train", "step": step, "loss": 2 / step + seed, "terms": terms, "failed_clips": 0})
        if step % 3 == 0:
            scores = {"top1": top1 * step / 3 + seed, "map": 1.0, "headline": "top1"}
            lines.append({"kind": "val", "step": step, "epoch": step // 3, **scores})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text[:-20] if cut else text)
    if finished:
        result = {"gmacs": 0.5, "seconds": 60.0, "failed_clips": 0, "clips_seen": 10 * rows}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "last.safetensors").touch()
    return folder


def make_score(file, checkpoint, top1=50.0, size=16, **changes):
    """The JSON of an evaluation of two clips."""
    score = {"top1": top1, "top5": 100.0, "mean_class": 50.0, "map": 60.0, "headline": "top1", "clips": 2, "failed": 0,
             "unlabelled": 0, "protocol": "1x1", "views": 1, "average": "prob", "size": size, "gmacs": 1.0, "gflops": 1.0,
             "confused": [], "checkpoint": str(checkpoint), "data": "gone"}  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(score | changes))
    return file


def make_answers(file, clips, kind=lambda i: "x"):
    """NAME.answers.csv: the first answer is right, no other one."""
    lines = [f"0,{i},{kind(i)},{kind(i) if i == 0 else 'y'},0.5,{int(i == 0)}\n" for i in range(clips)]
    file.write_text("shard,key,truth,answer,probability,right\n" + "".join(lines))


def text_of(page):
    """What a reader sees, in one line."""
    body = page.read_text().partition("<body>")[2]
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", body)).split())
