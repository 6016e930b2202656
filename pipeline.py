#!/usr/bin/env python
"""reskd: train low-resolution video students against a high-resolution teacher that runs once."""

import errno

import click

from stages.bench.command import bench
from stages.demo.command import demo
from stages.evaluate.command import evaluate
from stages.export.command import export
from stages.import_checkpoint.command import import_checkpoint
from stages.models.command import models
from stages.packs.command import pack
from stages.predict.command import predict
from stages.prepare.command import prepare
from stages.report.command import report
from stages.student.command import train_student
from stages.sweep.command import sweep
from stages.teacher.command import cache_teacher, inspect_cache, verify_cache

# In the order of the work. Each command is in command.py of its stage. These files import click alone, so help is quick.
COMMANDS = (demo, models, prepare, import_checkpoint, cache_teacher, inspect_cache, verify_cache, pack, train_student, sweep,
            evaluate, predict, export, report, bench)  # fmt: skip

# What a disk or a network's folder answers when it is full, read-only, damaged or gone.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOENT,
               errno.ENOTDIR, errno.EFBIG}  # fmt: skip


class Pipeline(click.Group):
    """Shows an error that the user can mend as a message, without a traceback.

    The exit status is 1, or 128 + the number of the signal that has stopped the command.
    """

    def list_commands(self, ctx):
        return [command.name for command in COMMANDS]

    def invoke(self, ctx):
        from cache.errors import ReskdError

        try:
            return super().invoke(ctx)
        except ReskdError as error:
            from stages.runtime.terminal import printable

            failure = click.ClickException(printable(str(error)))
            failure.exit_code = getattr(error, "exit_status", 1)
            raise failure from error
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            from stages.runtime.terminal import printable

            name = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(printable(
                f"{name}{error.strerror}. Make room, put the folder back or correct the permissions, and run the command "
                "again: what is finished stays (train-student: with --resume)")) from error  # fmt: skip
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(128 + 2)


def print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the name and the version in pyproject.toml, and exit."""
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
    """Train low-resolution video students on the stored outputs of a high-resolution teacher, which runs once.

    \b
    command            input               -> output
    prepare            videos, annotations -> WebDataset shards and an index
    train-student      shards              -> a teacher (high resolution, no cache)
    import-checkpoint  a published model   -> a teacher
    cache-teacher      shards, teacher     -> a Zarr cache of soft targets and features
    inspect-cache      cache               -> its content, its size on disk, the views of a clip
    verify-cache       cache               -> damaged or missing files, and what to do about them
    pack               shards, cache       -> frames as small JPEGs, so that students decode no video
    train-student      shards, cache       -> one or many low-resolution students
    sweep              shards, cache       -> a grid of students, their Pareto front, the teacher time
    evaluate           checkpoint, shards  -> accuracy, without the teacher
    predict            checkpoint, videos  -> labels, over a whole video or along its time
    export             checkpoint          -> ONNX or a program of torch, for servers and phones
    report             runs, caches        -> one HTML page

    Begin with `pipeline.py demo`: it runs all stages on a small real data set, in minutes.
    Exit status: 0 done; 1 an error, which the message explains; 2 wrong usage; 130 (Ctrl-C) and 143 (SIGTERM) interrupted.

    `pipeline.py COMMAND --help` explains a command. `pipeline.py bench --help` lists the benchmarks.
    """


for command in COMMANDS:
    cli.add_command(command)

if __name__ == "__main__":
    cli()
