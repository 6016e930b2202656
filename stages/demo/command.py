"""The command `demo`."""

from pathlib import Path

import click

from stages.config.options import CONFIG, SET, json_option, with_options

DEMO = Path(__file__).parents[2] / "configs" / "demo" / "demo.yaml"


@click.command()
@click.option(
    "--model",
    type=click.Choice(["tsm", "tsn", "slowonly", "swin"]),
    help="Architecture of all networks.  [default: tsm]",
)
@click.option("--output", help="Folder for all files.  [default: runs/demo, or runs/demo-MODEL]")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="Students of each kind. With 3, results have a mean and a spread.  [default: 1]",
)
@click.option(
    "--epochs-times",
    type=click.IntRange(1),
    help="Train the students this many times as long. With 2, their files are in OUTPUT/x2; the teacher and its cache are "
    "made once for all.  [default: 1]",
)
@click.option(
    "--unlabelled",
    is_flag=True,
    help="Only a quarter of the clips have labels. One more student is distilled from all clips.",
)
@CONFIG
@SET
@json_option
def demo(model, output, seeds, epochs_times, unlabelled, config_file, overrides):
    """Make a small data set and run every stage on it.

    The clips are H.264 videos of moving handwritten digits. A teacher is trained at high resolution, and its outputs are
    cached once. One student learns from labels only, the other from the cache too. The table at the end compares them.

    Then the student is exported, and recognises three test videos.

    Writes report.html (open it in a browser), summary.json, curves.png (validation during training), views.png (what
    teacher and student see), student.pt2 (and student.onnx with the extra `export`) and predictions.jsonl. After an
    interruption run the same command again.
    """
    from stages.config.file import load_config
    from stages.demo.config import DemoConfig
    from stages.demo.demo import run_demo

    if not output and (model or unlabelled):
        output = "-".join(["runs/demo", *([model] if model else []), *(["unlabelled"] if unlabelled else [])])
    options = {
        "model": model,
        "output": output,
        "seeds": seeds,
        "epochs_times": epochs_times,
        "unlabelled": unlabelled or None,
    }
    return run_demo(load_config(DemoConfig, config_file or DEMO, with_options(options, overrides)))
