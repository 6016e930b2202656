"""Scores against scikit-learn and a loop by hand; a student needs no teacher."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from cache.errors import ReskdError
from cache.view import sample_view
from stages.config import EvaluateConfig, load_config
from stages.data.decode import decode_frames
from stages.data.render import render
from stages.data.shards import open_dataset
from stages.evaluate import evaluate
from stages.models.checkpoints import load_model, save_model


def test_scores_are_scikit_learns(data, teacher, tmp_path):
    config = load_config(
        EvaluateConfig, None, [f"checkpoint={teacher}", f"data={data.val}", f"output={tmp_path}/deep/score.json"]
    )
    result = evaluate(config)
    net, card = load_model(teacher)
    dataset, logits, labels = open_dataset(data.val), [], []
    for entry in dataset.shards:
        for r, row in enumerate(dataset.rows(entry.name)):
            view = sample_view(card.eval_policy, shard=entry.name, key=row.key, index=0, num_frames=8, aspect=1.0)
            pictures, _ = decode_frames(dataset.read(entry.name, r), view.frames, row.decoder)
            with torch.no_grad():
                logits.append(net(torch.from_numpy(render(pictures, view, 32))[None]).logits[0].numpy())
            labels.append(row.labels[0])
    logits = np.stack(logits)
    assert result["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert result["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=range(40)))
    assert result["mean_class"] == pytest.approx(100 * balanced_accuracy_score(labels, logits.argmax(1)))
    assert result["clips"] == 40 and json.loads((tmp_path / "deep" / "score.json").read_text()) == result


def test_refuses_other_classes(data, teacher, tmp_path):
    net, card = load_model(teacher)
    other = type(card)(**{**card.__dict__, "classes": tuple(reversed(card.classes))})
    save_model(tmp_path / "t.safetensors", net, other)
    config = load_config(EvaluateConfig, None, [f"checkpoint={tmp_path}/t.safetensors", f"data={data.val}"])
    with pytest.raises(ReskdError, match="other classes"):
        evaluate(config)
