"""A sweep's cohorts on an engine: several train at once, each on a GPU or on a core of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cache.errors import ReskdError
from stages.engine.actor import Tell, Units
from stages.engine.check_paths import check_paths, marked, paths_in
from stages.engine.engine import Engine, Job
from stages.engine.run_units import run_units
from stages.remote.url_path import Location
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.stage_timer import note_seconds
from stages.student.config import TrainConfig
from stages.student.train_student import train_cohort
from stages.sweep.plan import pending, stops_all
from stages.sweep.report import note_decoded_epochs

Cohort = Mapping[str, TrainConfig]


@dataclass(frozen=True)
class Trained:
    """`reason`: why students of the cohort failed; None if none did."""

    seconds: float
    reason: str | None


def train_on_engine(
    engine: Engine, cohorts: Sequence[Cohort], out: Location
) -> tuple[dict[str, str], dict[str, float]]:
    """Train the cohorts that aren't done. Returns the reasons of the students that failed, and the seconds of each cohort.

    A cohort whose actor or node is lost goes on elsewhere, from its last checkpoint.
    """
    missing = {" + ".join(cohort): (dict(cohort), pending(cohort)) for cohort in cohorts}
    units = {name: cohort for name, (cohort, students) in missing.items() if students}
    note_decoded_epochs(out, units.values())
    configs = [config for cohort in units.values() for config in cohort.values()]
    inputs = tuple(dict.fromkeys(paths_in([(config.data, config.teacher, config.init) for config in configs])))
    threads = os.environ.get("OMP_NUM_THREADS")
    with marked(out) as mark:
        job = Job(
            work=partial(_train, inputs, mark),
            units=units,
            size={name: len(missing[name][1]) for name in units},
            title="sweep",
            progress_unit="students",
            output=out,
            inputs=(*inputs, out),
            threads=int(threads) if threads else None,
        )
        outcome = run_units(engine, job)
    failed, seconds = {}, note_seconds(out / "seconds.json", {n: r.seconds for n, r in outcome.results.items()})
    for name, cohort in units.items():
        reason = outcome.failed.get(name) or outcome.results[name].reason
        failed |= dict.fromkeys(pending(cohort), reason)
    return failed, seconds


def _train(inputs: tuple[Location, ...], mark: Location, units: Units, tell: Tell) -> None:
    """What an actor does: train the cohorts that it is given."""
    check_paths(inputs, mark)
    for name, cohort in units:
        tell.begun(name)
        started, reason = time.perf_counter(), None
        try:
            train_cohort(cohort, resume=True, go_on=RUN_AGAIN)
        except ReskdError as error:
            if stops_all(error):
                raise
            reason = str(error)
        tell.done(name, Trained(time.perf_counter() - started, reason))
