#!/usr/bin/env python
"""reskd: train low-resolution video students against a high-resolution teacher that runs once."""

from pathlib import Path

import click

CONFIG = click.option("--config", "config_file", type=click.Path(path_type=Path), help="A YAML file; see configs/.")
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as optim.lr=0.1."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, do nothing.")


class Pipeline(click.Group):
    """Commands in the order of the work; an error the user can mend is a message, not a traceback."""

    def list_commands(self, ctx):
        return ["demo", "prepare", "cache-teacher", "train-student", "evaluate"]

    def invoke(self, ctx):
        from cache.errors import ReskdError

        try:
            return super().invoke(ctx)
        except ReskdError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Pipeline, context_settings={"help_option_names": ["-h", "--help"]})
def cli():
    """Cross-resolution knowledge distillation for video, offline: the teacher is paid for once.

    \b
    prepare         videos        -> WebDataset shards and an index
    train-student   shards        -> a teacher (high resolution, no cache)
    cache-teacher   shards+teacher-> a Zarr cache of soft targets and features
    train-student   shards+cache  -> any number of low-resolution students
    evaluate        checkpoint    -> accuracy, without the teacher

    Begin with `pipeline.py demo`: all of it on a small real data set, in minutes.
    """


@cli.command()
@click.option("--output", help="Everything goes there.  [default: runs/demo]")
@click.option(
    "--seeds", type=click.IntRange(1), help="Students of each kind; 3 gives a mean and a spread.  [default: 1]"
)
@CONFIG
@SET
def demo(output, seeds, config_file, overrides):
    """Make a small data set and take it through every stage.

    Moving handwritten digits, encoded as H.264: a teacher is trained at high resolution and cached once; one student
    learns from labels alone, one from the cache. Writes summary.json, curves.png, views.png; a rerun resumes.
    """
    from stages.config import DemoConfig, load_config
    from stages.demo import run_demo

    options = {"output": output, "seeds": seeds}
    run_demo(load_config(DemoConfig, config_file or DEMO, _with_options(options, overrides)))


DEMO = Path(__file__).parent / "configs" / "demo" / "demo.yaml"


@cli.command()
@click.argument("source", required=False)
@click.option("--output", help="The data set's folder.")
@click.option("--annotations", help="A CSV path,label[,label...] for a folder of videos; paths relative to it.")
@click.option("--classes", help="The classes' order: a file with one name a line, or a prepared data set.")
@click.option("--clips-per-shard", type=int)
@CONFIG
@SET
def prepare(config_file, overrides, **options):
    """Make a data set from SOURCE: videos -> tar shards and an index.

    \b
    SOURCE is one of
      a folder of class folders of videos     (the folders' names are the classes)
      a folder of videos                      (unlabelled, or labelled by --annotations)
      a CSV path,label[,label...]             (paths relative to it; an empty label: unlabelled)
      a folder of .tar shards made elsewhere  (only the index is made; the tars stay where they are)

    Videos are copied byte by byte; unreadable ones are listed in OUTPUT/quarantine.jsonl. A rerun resumes.
    """
    from stages.config import PrepareConfig, load_config
    from stages.prepare import prepare

    prepare(**dict(load_config(PrepareConfig, config_file, _with_options(options, overrides))))


@cli.command("cache-teacher")
@CONFIG
@SET
@click.option("--views", type=int, help="V, stored views of every clip; can be raised later.")
@click.option("--verify", type=click.IntRange(1), default=None, help="Recompute so many random clip·views and compare.")
@click.option("--strict", is_flag=True, help="Stop at the first unreadable clip instead of quarantining it.")
@DRY_RUN
def cache_teacher(config_file, overrides, views, verify, strict, dry_run):
    """Stage one: run the teacher once over V views of every clip.

    Killed and run again, it redoes only what was not committed. A rerun with another teacher, policy, decoder or
    shard list is refused; a rerun with more --views adds to the cache in place. Several processes (torchrun) share
    the shards.
    """
    from stages.cache_teacher import cache_teacher
    from stages.config import CacheConfig, load_config

    config = load_config(CacheConfig, config_file, _with_options({"views": views}, overrides))
    cache_teacher(config, strict=strict, dry_run=dry_run, verify=verify or 0)


@cli.command("train-student")
@CONFIG
@SET
@click.option("--resume", is_flag=True, help="Go on from OUTPUT/last.pt, exactly.")
@click.option("--overwrite", is_flag=True, help="Replace the run in OUTPUT.")
@click.option("--allow-partial", is_flag=True, help="Train on the finished shards of an unfinished cache.")
@DRY_RUN
def train_student(config_file, overrides, resume, overwrite, allow_partial, dry_run):
    """Stage two: train a student from the cache; without data.cache, a teacher or a baseline.

    Several processes: torchrun --nproc-per-node N pipeline.py train-student ...
    """
    from stages.config import TrainConfig, load_config
    from stages.train_student import train_student

    config = load_config(TrainConfig, config_file, overrides)
    train_student(config, resume=resume, overwrite=overwrite, allow_partial=allow_partial, dry_run=dry_run)


@cli.command()
@click.argument("checkpoint", required=False)
@click.option("--data", help="A data set made by prepare.")
@click.option("--output", help="Write the metrics there, as JSON.")
@click.option("--size", type=int, help="px; the size it was trained at if not given.")
@CONFIG
@SET
def evaluate(config_file, overrides, **options):
    """Score a CHECKPOINT (.safetensors): top-1, top-5, mean class accuracy."""
    from stages.config import EvaluateConfig, load_config
    from stages.evaluate import evaluate

    evaluate(load_config(EvaluateConfig, config_file, _with_options(options, overrides)))


def _with_options(options: dict, overrides: tuple) -> list[str]:
    """Options that were given, as overrides; --set comes last and wins."""
    import json  # JSON is YAML: a path keeps its blanks, colons, and hashes

    return [f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None] + list(overrides)


if __name__ == "__main__":
    cli()
