"""Runs of `predict` in this process."""

import json
from pathlib import Path

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
