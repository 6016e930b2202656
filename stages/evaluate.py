"""Accuracy of a checkpoint on a data set. A student is evaluated without its teacher."""

from __future__ import annotations

import json

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.config import EvaluateConfig
from stages.data.join import Clips, check_labels
from stages.data.shards import open_dataset
from stages.models import model_stats, place
from stages.models.checkpoints import load_model
from stages.training.distributed import ranks
from stages.training.loading import in_order
from stages.training.log import console
from stages.training.metrics import score


def evaluate(config: EvaluateConfig) -> dict:
    """Score a checkpoint; returns (and with `output`, writes) {"top1", "top5", "mean_class" in percent, "clips",
    "failed", "size", "gmacs", "checkpoint", "data"}.

    Raises ReskdError where the data set's classes aren't the checkpoint's, or no clip is labelled.
    """
    if config.output is not None:
        try:
            config.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReskdError(f"{config.output} can't be written ({error.strerror}): give another output") from error
    model, card = load_model(config.checkpoint)
    data = open_dataset(config.data)
    data.check_files()
    if card.classes != tuple(data.classes):
        raise ReskdError(f"{config.checkpoint} knows other classes than {data.path} has: prepare the data set with "
                         f"the checkpoint's order (prepare --classes FILE)")  # fmt: skip
    check_labels(data, single=False)
    size = config.size or card.size
    clips = Clips(
        data, size=size, via=card.render_via, num_classes=len(data.classes), policy=config.policy or card.eval_policy
    )
    with ranks() as at:
        batches = in_order(clips, config.loader, config.batch_size, at)
        amp = config.amp == "auto" and at.device.type == "cuda"
        metrics = score(place(model, at.device), batches, len(data.classes), at, amp)
        result = {
            **metrics,
            "size": size,
            "gmacs": model_stats(model, size).gmacs,
            "checkpoint": str(config.checkpoint),
            "data": str(config.data),
        }
        if config.output is not None and at.first:
            write_atomically(config.output, (json.dumps(result, indent=2) + "\n").encode())
    console.print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()))
    return result
