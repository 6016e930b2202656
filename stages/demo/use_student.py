"""What a student is trained for: it is exported, and recognises videos."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from stages.export.config import ExportConfig
from stages.export.export import export
from stages.export.program import missing_packages
from stages.predict.config import PredictConfig
from stages.predict.predict import predict
from stages.runtime.terminal import console

PREDICTED = 3  # videos


def export_student(checkpoint: Path, data: Path, output: Path) -> list[dict]:
    """Write output.pt2, and output.onnx where ONNX's packages are installed; a file newer than the checkpoint stays.

    Returns what `export` says of each file that it wrote.
    """
    endings = [".pt2", *([] if missing_packages() else [".onnx"])]
    trained = checkpoint.stat().st_mtime_ns
    wanted = [output.with_suffix(ending) for ending in endings]
    missing = [path for path in wanted if not path.exists() or path.stat().st_mtime_ns < trained]
    return [export(ExportConfig(checkpoint=checkpoint, output=path, data=data, overwrite=True)) for path in missing]


def predict_videos(checkpoint: Path, videos: Path, output: Path) -> list[dict]:
    """Recognise three videos of different classes in the folder `videos` of class folders. Returns the lines of `output`.

    Each line also has "truth", the name of the video's folder.
    """
    chosen = [min(folder.iterdir()) for folder in sorted(videos.iterdir())]
    chosen = chosen[:: max(1, len(chosen) // PREDICTED)][:PREDICTED]
    predict(PredictConfig(checkpoint=checkpoint, inputs=tuple(chosen), output=output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return [{**line, "truth": video.parent.name} for line, video in zip(lines, chosen, strict=True)]


def print_predictions(lines: list[dict]) -> None:
    table = Table("video", "truth", "the student says", "probability", title="three new videos")
    for line in lines:
        table.add_row(Path(line["video"]).name, line["truth"], line["label"], f"{line['probability']:.2f}")
    console.print(table)
