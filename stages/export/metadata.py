"""What an exported file says of itself: all that another program needs to run it on videos."""

from __future__ import annotations

import json
from dataclasses import asdict

from stages.models.checkpoints import ModelCard
from stages.remote.url_path import Location

FORMAT = 1  # raised when a reader of the metadata has to change


def metadata_of(checkpoint: Location, card: ModelCard, precision: str = "float32") -> dict[str, str]:
    """The metadata: texts, as ONNX has them. All but name, arch, backbone and precision are JSON.

    format: the number of this format. name: the checkpoint's file. precision: float32 or int8, of weights and activations.
    labels: the K classes in order. size: S, px. frames: T. render_via: null, or px at which frames are drawn before they
    shrink to `size`, see `render` in stages/video/render.py. eval_policy: which frames and crops a video is judged by, see
    ViewPolicy in cache/view.py.
    """
    return {
        "format": json.dumps(FORMAT),
        "name": checkpoint.name.encode(errors="backslashreplace").decode(),
        "arch": card.model.arch,
        "backbone": card.model.backbone,
        "precision": precision,
        "labels": json.dumps(card.classes),
        "size": json.dumps(card.size),
        "render_via": json.dumps(card.render_via),
        "frames": json.dumps(card.model.num_frames),
        "eval_policy": json.dumps(asdict(card.eval_policy)),
    }
