"""What frozen nets know of the clips: a linear classifier on their mean features. So it is seen how much there is to gain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cache.store import write_atomically
from stages.bench.real.config import RealConfig
from stages.bench.real.runs import CHOICE, imagenet_checkpoint
from stages.models.checkpoints import load_model
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.clips import ClipDataset

BATCH = 16
STRENGTH = 0.01  # C of the classifier, the inverse of its penalty: it has 1280 weights a class, and a few hundred clips


def probe(config: RealConfig, name: str, size: int) -> float:
    """Top-1 in percent on the held-out clips, of a classifier on centre views' features of ImageNet's `name` at `size` px.

    The result is kept in a file."""
    file = config.output / "nets" / f"probe-{name}-{size}.json"
    if not file.exists():
        net = imagenet_checkpoint(config, name)
        sides = (open_dataset(config.output / "data" / f"{CHOICE}-{side}") for side in ("train", "test"))
        (features, labels), (others, truth) = (mean_features(net, data, size) for data in sides)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
        top1 = 100 * classifier.fit(features, labels).score(others, truth)
        write_atomically(file, json.dumps({"top1": float(top1)}).encode())
    return json.loads(file.read_text())["top1"]


def mean_features(checkpoint: Path, data: Dataset, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each usable clip's map, float32 [N,D], and the clips' labels, int64 [N]."""
    model, card = load_model(checkpoint)
    model.eval()
    clips = ClipDataset(data, size=size, num_classes=len(data.classes), policy=card.eval_policy)
    indices = [(s, int(r), 0) for s, rows in enumerate(data.usable_rows()) for r in rows]
    features, labels = [], []
    with torch.inference_mode():
        for i in range(0, len(indices), BATCH):
            batch = clips.__getitems__(indices[i : i + BATCH])
            features.append(model.extract(batch.clips).float().mean((1, 2, 3)))
            labels.append(batch.labels)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()
