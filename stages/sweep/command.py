"""The command `sweep`."""

from pathlib import Path

import click

from stages.config.options import CONFIG, DRY_RUN, SET


@click.command()
@CONFIG
@SET
@click.option("--grid", multiple=True, metavar="KEY=V1,V2", help="Every value, with all of the others; repeatable.")
@click.option("--at-once", type=click.IntRange(1), default=8, show_default=True, help="Students on one stream: memory.")
@click.option("--test", type=click.Path(path_type=Path), help="Score the last weights on this data set.")
@DRY_RUN
def sweep(config_file, overrides, grid, at_once, test, dry_run):
    """Train many students against one cache: every point of a grid, as few decoded streams as they fit into.

    The config is train-student's, with `students` (names -> keys), or `grid` (keys -> lists), or both. Students that
    agree on data, views and batches are trained together; those that don't, one cohort after another. Writes, into
    OUTPUT, a folder for each, sweep.json, and sweep.png: accuracy over GFLOPs with its Pareto front. Prints what the
    teacher cost, and what it would have in the loop. A rerun goes on, and takes more students.

    \b
    pipeline.py sweep --config configs/own/sweep.yaml
    pipeline.py sweep --config configs/demo/tsm/distilled.yaml --set output=runs/sweep --grid size=16,24 --grid seed=0,1

    Several processes train each cohort together: torchrun --nproc-per-node N pipeline.py sweep ...
    """
    from stages.sweep.config import load_sweep
    from stages.sweep.sweep import run_sweep

    run_sweep(load_sweep(config_file, overrides, grid), at_once=at_once, test=test, dry_run=dry_run)
