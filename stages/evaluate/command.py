"""The command `evaluate`."""

import click

from stages.config.options import CONFIG, SET, json_option, with_options


@click.command(short_help="Score a checkpoint on a data set, without the teacher.")
@click.argument("checkpoint", required=False)
@click.option("--data", help="A data set made by prepare.")
@click.option(
    "--output", help="NAME.json for the metrics; beside it NAME.answers.csv, NAME.classes.csv and NAME.confusion.png."
)
@click.option("--pack", help="A pack of the data set, made with --frames all; read instead of the videos.")
@click.option("--size", type=int, help="px.  [default: the size of its training]")
@click.option("--protocol", metavar="CxP", help="C clips in time by 1 or 3 crops: 1x1, 2x3, 4x3, 10x3.  [default: 1x1]")
@click.option(
    "--average",
    type=click.Choice(["prob", "logit", "feature"]),
    help="What is averaged over a video's views.  [default: prob]",
)
@CONFIG
@SET
@json_option
def evaluate(config_file, overrides, **options):
    """Score a CHECKPOINT (.safetensors): top-1, top-5, mean class accuracy, mAP; metrics of each class; confused classes.
    CHECKPOINT, --data and --output may be at a URL (s3://...).

    For several processes: torchrun --nproc-per-node N pipeline.py evaluate ... The metrics equal those of one process.
    """
    from stages.config.file import load_config
    from stages.evaluate.config import EvaluateConfig
    from stages.evaluate.evaluate import evaluate

    return evaluate(load_config(EvaluateConfig, config_file, with_options(options, overrides)))
