"""The command `report`."""

from pathlib import Path

import click

from stages.config.options import ANY_PATH, LocalPath, json_option


@click.command(short_help="Make one HTML page of runs, sweeps, caches and studies.")
@click.argument("paths", nargs=-1, required=True, type=ANY_PATH)
@click.option(
    "--output",
    type=LocalPath(),
    default=Path("report.html"),
    show_default=True,
    help="The page. It needs no other file and no network, so it can be sent to others.",
)
@json_option
def report(paths, output):
    """Make one HTML page of what lies at and below PATHS.

    PATHS are folders of runs, cohorts, sweeps and caches, folders that hold such folders, and the JSONs of `evaluate` and
    `bench fidelity`; or URLs of a run, a sweep, a cache, a data set, or a JSON. The page shows the runs and in what their
    configs differ, learning curves, losses and their weights, accuracy over GFLOPs, classes and confusions with frames of
    clips, teacher beside student, the teacher's cost, and what was left out. What can't be read is named, and doesn't stop
    the rest.

    Frames and comparisons clip by clip need NAME.answers.csv, which `evaluate --output` writes.

    \b
    pipeline.py report runs/demo --output report.html
    pipeline.py report runs/own/student runs/own/teacher.zarr runs/own/student/test.json
    """
    from stages.report.report import write_report

    return write_report(paths, output)
