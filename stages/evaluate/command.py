"""The command `evaluate`."""

import click

from stages.config.options import CONFIG, SET, with_options


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--data", help="A data set made by prepare.")
@click.option("--output", help="NAME.json for the metrics; NAME.classes.csv and NAME.confusion.png go beside it.")
@click.option("--pack", help="Made by pack of that data set, with --frames all: it is read instead of the videos.")
@click.option("--size", type=int, help="px; the size it was trained at if not given.")
@click.option("--protocol", metavar="CxP", help="C clips in time by 1 or 3 crops: 1x1, 2x3, 4x3, 10x3.  [default: 1x1]")
@click.option(
    "--average", type=click.Choice(["prob", "logit", "feature"]), help="Over a video's views.  [default: prob]"
)
@CONFIG
@SET
def evaluate(config_file, overrides, **options):
    """Score a CHECKPOINT (.safetensors): top-1, top-5, mean class accuracy, mAP; each class; what is taken for what.

    Several processes: torchrun --nproc-per-node N pipeline.py evaluate ... The numbers are those of one.
    """
    from stages.config.file import load_config
    from stages.evaluate.config import EvaluateConfig
    from stages.evaluate.evaluate import evaluate

    evaluate(load_config(EvaluateConfig, config_file, with_options(options, overrides)))
