"""Runs of `predict` in this process, and pictures for them."""

import json
from pathlib import Path

import numpy as np

from stages.config.file import load_config
from stages.predict.config import PredictConfig
from stages.predict.predict import predict


def config_of(net, inputs, *changes) -> PredictConfig:
    given = json.dumps([str(path) for path in inputs])
    return load_config(PredictConfig, None, [f"checkpoint={net}", f"inputs={given}", "loader.workers=0", *changes])


def lines_of(net, inputs, folder: Path, *changes) -> list[dict]:
    """The lines that a run writes."""
    output = folder / "out.jsonl"
    predict(config_of(net, inputs, f"output={output}", *changes))
    return read_lines(output)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shades(*seconds: float, fps: int = 4, first: int = 0) -> np.ndarray:
    """uint8 [N,32,48,3]: dark for the first number of seconds, bright for the next, and so on."""
    parts = [
        np.full((round(s * fps), 32, 48, 3), 20 + 200 * ((i + first) % 2), np.uint8) for i, s in enumerate(seconds)
    ]
    return np.concatenate(parts)
