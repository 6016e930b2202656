"""The plan of a sweep: its cohorts, its folder, and all checks before any training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.table import Table

from cache.errors import ReskdError, StoreError
from cache.store import side_by_side
from stages.remote.store import Changed
from stages.remote.url_path import Location
from stages.runtime.terminal import console
from stages.shards.dataset import open_dataset
from stages.shards.labels import check_labels
from stages.student.cohort import shared_keys
from stages.student.config import TrainConfig
from stages.sweep.pareto_front import student_identity

BESIDE = "beside.json"  # the seconds of what is trained in a second process
SWEEP_FILES = {
    "sweep.json",
    "sweep.png",
    "seconds.json",
    "passes.json",
    BESIDE,
}  # in the folder of the students' folders


def group_cohorts(students: Mapping[str, TrainConfig], at_once: int) -> list[dict[str, TrainConfig]]:
    """Cohorts of at most `at_once` students that can share a stream of clips, in the order of the students."""
    streams: dict[str, list[str]] = {}
    for name, config in students.items():
        streams.setdefault(json.dumps(shared_keys(config), sort_keys=True), []).append(name)
    return [
        {name: students[name] for name in names[i : i + at_once]}
        for names in streams.values()
        for i in range(0, len(names), at_once)
    ]


def pending(cohort: Mapping[str, TrainConfig]) -> list[str]:
    """The students of a cohort that aren't finished."""
    files = [config.output / "result.json" for config in cohort.values()]
    finished = side_by_side(files[0], lambda file: file.is_file(), files)
    return [name for name, is_there in zip(cohort, finished, strict=True) if not is_there]


def stops_all(error: Exception) -> bool:
    """Whether an error of a cohort is that of a store, which all have. If another run has written a student, that one fails."""
    return isinstance(error, StoreError) and not isinstance(error, Changed)


def halves(
    cohorts: Sequence[dict[str, TrainConfig]],
) -> tuple[list[dict[str, TrainConfig]], list[dict[str, TrainConfig]]]:
    """The first and the second half of the students of each cohort; cohorts of one student are shared out in turn."""
    first, second = [], []
    for cohort in cohorts:
        names, smaller = list(cohort), min(first, second, key=lambda half: sum(map(len, half)))
        larger = second if smaller is first else first
        middle = (len(names) + 1) // 2
        for half, part in ((smaller, names[:middle]), (larger, names[middle:])):
            if part:
                half.append({name: cohort[name] for name in part})
    return first, second


def sweep_folder(students: Mapping[str, TrainConfig]) -> Location:
    """The folder that holds all students' folders. Raises ReskdError if they are in several."""
    folders = {config.output.parent for config in students.values()}
    if len(folders) != 1:
        raise ReskdError(f"a sweep's students lie in one folder: remove their own `output` ({len(folders)} are given)")
    return folders.pop()


def check_students(students: Mapping[str, TrainConfig], test: Location | None) -> None:
    """Raises ReskdError for names of the sweep's own files, for equal students, and for a test set that doesn't fit."""
    if taken := SWEEP_FILES & students.keys():
        raise ReskdError(f"a student can't be called {min(taken)}: the sweep writes a file of that name")
    first_names: dict[str, str] = {}
    for name, config in students.items():
        first = first_names.setdefault(student_identity(config, "output"), name)
        if first != name:
            raise ReskdError(f"the students {first} and {name} are the same: leave one out, or give it another seed")
    if test is None:
        if any(config.data.val is None for config in students.values()):
            console.print(
                "[yellow]warning[/] students without data.val are trained and not scored: give data.val or --test"
            )
        return
    data = open_dataset(test)
    data.check_files()
    if not check_labels(data, single=False)["labelled"]:
        raise ReskdError(f"--test {test}: none of its clips has a label; give a labelled data set")
    for train in {config.data.train for config in students.values()}:
        if open_dataset(train).classes != data.classes:
            raise ReskdError(f"--test {test} has other classes than {train}: prepare both with one class list "
                             f"(prepare --class-order {train})")  # fmt: skip


def print_plan(cohorts: Sequence[Mapping[str, TrainConfig]], at_once: int) -> None:
    """A table with a row for each cohort."""
    table = Table("cohort", "students", "epochs decoded", title=f"sweep: at most {at_once} students on one stream")
    for number, cohort in enumerate(cohorts, 1):
        table.add_row(str(number), " ".join(cohort), str(max(c.schedule.epochs for c in cohort.values())))
    console.print(table)
