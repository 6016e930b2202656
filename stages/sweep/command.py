"""The command `sweep`."""

import click

from stages.config.options import ANY_PATH, CONFIG, DRY_RUN, ENGINE, SET, json_option


@click.command()
@CONFIG
@SET
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=V1,V2",
    help="A key and its values. Students get each combination of all grids. Repeatable.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Students that train together on one stream of clips. More need more memory.",
)
@click.option(
    "--test",
    type=ANY_PATH,
    help="A labelled data set: score the last weights on it. Without it, the best validation is the score.",
)
@ENGINE
@DRY_RUN
@json_option
def sweep(config_file, overrides, grid, at_once, test, dry_run, engine, address, actors):
    """Train a grid of students on one cache.

    Each point of the grid is a student. The config is that of train-student, with `students` (names -> keys), or `grid`
    (keys -> lists), or both. Students with the same data, views and batches train together, as a cohort. The cohorts train
    one after another.

    `output` is the folder of the sweep, or its URL. It gets a folder for each student, sweep.json, and sweep.png: accuracy
    over GFLOPs with the Pareto front. The last table shows the teacher time, and what it would be with the teacher in the
    loop. After an interruption run the same command again. The new run may have more students.

    \b
    pipeline.py sweep --config configs/own/sweep.yaml
    pipeline.py sweep --config configs/demo/tsm/distilled.yaml --set output=runs/sweep --grid size=16,24 --grid seed=0,1

    Several processes train each cohort together: torchrun --nproc-per-node N pipeline.py sweep ...
    With --engine ray, several cohorts train at once: one a GPU, or as many as there are cores. A smaller --at-once makes
    more cohorts.
    """
    from stages.engine.engine import chosen_engine
    from stages.runtime.next_command import say_report_command
    from stages.sweep.config import load_sweep
    from stages.sweep.plan import sweep_folder
    from stages.sweep.sweep import run_sweep

    students = load_sweep(config_file, overrides, grid)
    chosen = chosen_engine(engine, address, actors)
    result = run_sweep(students, at_once=at_once, test=test, dry_run=dry_run, engine=chosen)
    if not dry_run:
        say_report_command(sweep_folder(students))
    return result
