#!/usr/bin/env python
"""reskd: train low-resolution video students against a high-resolution teacher that runs once."""

import click

from stages.bench.command import bench
from stages.demo.command import demo
from stages.evaluate.command import evaluate
from stages.import_checkpoint.command import import_checkpoint
from stages.models.command import models
from stages.packs.command import pack
from stages.prepare.command import prepare
from stages.student.command import train_student
from stages.sweep.command import sweep
from stages.teacher.command import cache_teacher, inspect_cache, verify_cache

# In the order of the work. Each command stands in its stage's command.py, which imports click alone.
COMMANDS = (demo, models, prepare, import_checkpoint, cache_teacher, inspect_cache, verify_cache, pack, train_student, sweep,
            evaluate, bench)  # fmt: skip


class Pipeline(click.Group):
    """An error that the user can mend is a message, not a traceback."""

    def list_commands(self, ctx):
        return [command.name for command in COMMANDS]

    def invoke(self, ctx):
        from cache.errors import ReskdError

        try:
            return super().invoke(ctx)
        except ReskdError as error:
            raise click.ClickException(str(error)) from error


def print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """The version in pyproject.toml, which stands beside this file."""
    if wanted and not ctx.resilient_parsing:
        import tomllib
        from pathlib import Path

        project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text())["project"]
        click.echo(f"{project['name']} {project['version']}")
        ctx.exit()


@click.group(cls=Pipeline, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version,
              help="Show the version and exit.")  # fmt: skip
def cli():
    """Cross-resolution knowledge distillation for video, offline: the teacher is paid for once.

    \b
    prepare            videos, annotations -> WebDataset shards and an index
    train-student      shards              -> a teacher (high resolution, no cache)
    import-checkpoint  a published one     -> a teacher
    cache-teacher      shards, teacher     -> a Zarr cache of soft targets and features
    inspect-cache      cache               -> what is in it, what it takes, what a clip's views show
    verify-cache       cache               -> whether it is whole; what to redo where it isn't
    pack               shards, cache       -> their frames as small JPEGs, so that students decode no video
    train-student      shards, cache       -> any number of low-resolution students
    sweep              shards, cache       -> a whole grid of them, their Pareto front, what the teacher cost
    evaluate           checkpoint, shards  -> accuracy, without the teacher

    Begin with `pipeline.py demo`: all of it on a small real data set, in minutes.
    """


for command in COMMANDS:
    cli.add_command(command)

if __name__ == "__main__":
    cli()
