"""The command `demo`."""

from pathlib import Path

import click

from stages.config.options import CONFIG, SET, with_options

DEMO = Path(__file__).parents[2] / "configs" / "demo" / "demo.yaml"


@click.command()
@click.option("--model", type=click.Choice(["tsm", "tsn", "slowonly", "swin"]), help="Of all nets.  [default: tsm]")
@click.option("--output", help="Everything goes there.  [default: runs/demo, or runs/demo-MODEL]")
@click.option(
    "--seeds", type=click.IntRange(1), help="Students of each kind; 3 gives a mean and a spread.  [default: 1]"
)
@click.option(
    "--unlabelled", is_flag=True, help="Students have the labels of a quarter of the clips: what do the others bring?"
)
@CONFIG
@SET
def demo(model, output, seeds, unlabelled, config_file, overrides):
    """Make a small data set and take it through every stage.

    Moving handwritten digits, encoded as H.264: a teacher is trained at high resolution and cached once; one student
    learns from labels alone, one from the cache. Writes summary.json, curves.png, views.png; a rerun resumes.
    """
    from stages.config.file import load_config
    from stages.demo.config import DemoConfig
    from stages.demo.demo import run_demo

    if not output and (model or unlabelled):
        output = "-".join(["runs/demo", *([model] if model else []), *(["unlabelled"] if unlabelled else [])])
    options = {"model": model, "output": output, "seeds": seeds, "unlabelled": unlabelled or None}
    run_demo(load_config(DemoConfig, config_file or DEMO, with_options(options, overrides)))
