"""The command `train-student`."""

import click

from stages.config.options import CONFIG, DRY_RUN, SET, json_option


@click.command("train-student", short_help="Stage two: train students from the cache.")
@CONFIG
@SET
@click.option("--resume", is_flag=True, help="Go on from OUTPUT/last.pt, with the same result.")
@click.option("--overwrite", is_flag=True, help="Replace the run in OUTPUT.")
@click.option("--allow-partial", is_flag=True, help="Train on the finished shards of an unfinished cache.")
@DRY_RUN
@json_option
def train_student(config_file, overrides, resume, overwrite, allow_partial, dry_run):
    """Stage two: train a student from the cache; without data.cache, a teacher or a baseline.

    A mapping `students` in the config trains several students on one stream; clips are decoded once for all. Each
    student's own keys (model, size, losses, seed, ...) are laid over the config, and each becomes what it would alone.

    \b
    students:
      r18: {model: {backbone: resnet18}}
      r34-96: {model.backbone: resnet34, size: 96}

    Several processes: torchrun --nproc-per-node N pipeline.py train-student ...
    """
    from stages.runtime.next_command import say_report_command
    from stages.student.cohort_config import folders_to_report, load_cohort
    from stages.student.train_student import train_cohort

    students = load_cohort(config_file, overrides)
    results = train_cohort(students, resume=resume, overwrite=overwrite, allow_partial=allow_partial, dry_run=dry_run)
    if not dry_run:
        say_report_command(*folders_to_report(students))
    return results.get("", results)  # a config without `students` is one student, without a name
