"""A sweep: trains and scores many students, which share as few streams of clips as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from rich.text import Text

from cache.errors import ReskdError, StoreError
from stages.config.json_result import check_writable, read_result
from stages.engine.engine import Engine
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.remote.url_path import Location
from stages.runtime.beside import beside
from stages.runtime.distributed import Ranks, cores, join_ranks
from stages.runtime.interrupt import RUN_AGAIN, Interrupted
from stages.runtime.lock import locked, locked_working_folder
from stages.runtime.stage_timer import stage_timer
from stages.runtime.terminal import console
from stages.student.config import TrainConfig
from stages.student.failures import StudentsFailed
from stages.student.train_student import train_cohort
from stages.sweep.engine_units import train_on_engine
from stages.sweep.plan import (
    BESIDE,
    check_students,
    group_cohorts,
    halves,
    pending,
    print_plan,
    stops_all,
    sweep_folder,
)
from stages.sweep.report import note_decoded_epochs, write_report

Cohort = Mapping[str, TrainConfig]


def run_sweep(
    students: Mapping[str, TrainConfig],
    *,
    at_once: int = 8,
    test: Location | None = None,
    dry_run: bool = False,
    engine: Engine | None = None,
) -> dict:
    """Train and score the students that aren't done yet. Returns the content of sweep.json, which it writes.

    Students that can share a stream (see `SHARED` in stages/student/cohort.py) are trained as cohorts of at most
    `at_once`, one cohort after another. `test`: a data set on which the last weights are scored; without it, the score is
    the best validation of each student. A rerun goes on with what is missing, and students may be added.
    {"students": {name: {"score": of the "headline", top1 or map; "gflops", ...}}, "points": the students averaged over
    seeds, "front": names on the Pareto front, "cost": see `_cost` in report.py, "failed": {name: reason}}.
    With several ranks, all train each cohort together, and rank 0 writes. With an engine, several cohorts train at once.
    From packs on a CPU, two halves of the students train side by side.
    Raises ReskdError before any training if a student can't be trained or its folder holds another run, and at the end if
    students failed. Raises StoreError at once if a store fails.
    """
    out, cohorts = sweep_folder(students), group_cohorts(students, at_once)
    check_students(students, test)
    with join_ranks() as ranks:
        if ranks.first:
            print_plan(cohorts, at_once)
        check_output = partial(ranks.run_on_first, partial(check_writable, out / "sweep.json"))
        if not dry_run and not isinstance(out, Path):
            check_output()
        for cohort in cohorts:  # check all cohorts before the first one is trained
            with console.capture() as printed:
                train_cohort(cohort, dry_run=True, resume=True)
            if dry_run and ranks.first:
                console.print(Text.from_ansi(printed.get()))
        if dry_run:
            return {"cohorts": [list(cohort) for cohort in cohorts]}
        if isinstance(out, Path):
            check_output()  # it makes the folder
        with _locked(out) if ranks.first else nullcontext():
            if engine is not None:
                failed, seconds = train_on_engine(engine, cohorts, out)
            else:
                first, second = halves(cohorts) if _leaves_cores_idle(students, ranks) else (cohorts, [])
                if ranks.first:
                    note_decoded_epochs(out, [*first, *second])
                with _beside(second, out) as failed_beside:
                    failed, seconds = _train(first, out, ranks)
                    failed |= failed_beside()
                seconds |= stage_timer(out / BESIDE)[1] if ranks.first else {}
            rows = _score_all(students, failed, test, ranks)
            result = ranks.gather(write_report(students, rows, failed, seconds, out, test) if ranks.first else None)[0]
    if failed:
        raise ReskdError(f"{len(failed)} of {len(students)} students failed:\n"
                         + "\n".join(dict.fromkeys(failed.values())) + "\nrun it again: what is done stays")  # fmt: skip
    return result


def _locked(out: Location) -> AbstractContextManager:
    """One process of a machine at a time writes the sweep. At a URL, each run sees whether another machine writes it."""
    if isinstance(out, Path):
        return locked(out / "sweep.json")
    return locked_working_folder(out)


def _leaves_cores_idle(students: Mapping[str, TrainConfig], ranks: Ranks) -> bool:
    """Whether one process of training leaves half of a CPU's cores idle: they are for decoding, and packs need little."""
    packed = all(config.data.pack is not None for config in students.values())
    return packed and len(students) > 1 and ranks.world == 1 and ranks.device.type == "cpu" and cores() > 1


@contextmanager
def _beside(cohorts: Sequence[Cohort], out: Location) -> Iterator[Callable[[], dict[str, str]]]:
    """Train the cohorts in a second process. Gives a function that waits for it, and returns the reasons of the students that
    failed. A signal ends both processes; each saves its students."""
    if not cohorts:
        yield dict
        return
    with beside(partial(_train_beside, cohorts, out)) as join:

        def failed() -> dict[str, str]:
            try:
                join()
            except ReskdError as error:
                if stops_all(error):
                    raise
                return {name: str(error) for cohort in cohorts for name in pending(cohort)}
            return {}

        yield failed


def _train_beside(cohorts: Sequence[Cohort], out: Location) -> None:
    """`_train` for a second process. Raises ReskdError with the reasons of the students that failed."""
    with join_ranks() as ranks:
        failed, _ = _train(cohorts, out, ranks, BESIDE)
    if failed:
        raise ReskdError("\n".join(dict.fromkeys(failed.values())))


def _train(
    cohorts: Sequence[Cohort], out: Location, ranks: Ranks, timings: str = "seconds.json"
) -> tuple[dict[str, str], dict[str, float]]:
    """Train the cohorts. Returns the reasons of the students that failed, and the seconds of each cohort (rank 0's).

    `timings`: the file of the seconds.
    """
    timed, seconds = stage_timer(out / timings) if ranks.first else ((lambda _, stage: stage()), {})
    failed: dict[str, str] = {}
    for cohort in cohorts:
        still_pending = partial(ranks.from_first, partial(pending, cohort))  # rank 0 knows when its uploads are done
        if not (names := still_pending()):
            continue
        try:
            timed(" + ".join(cohort), partial(train_cohort, cohort, resume=True, go_on=RUN_AGAIN))
        except Interrupted:
            raise
        except Exception as error:  # an error of one cohort must not stop the next one
            if stops_all(error):
                raise
            if ranks.world > 1 and not isinstance(error, StudentsFailed):  # all ranks raise that one together
                raise
            if not (missing := [name for name in still_pending() if name in names]):
                if isinstance(error, StoreError):  # another run has finished them
                    continue
                raise
            reason = str(error) if isinstance(error, ReskdError) else f"{type(error).__name__}: {error}"
            failed |= dict.fromkeys(missing, reason)
    return failed, seconds


def _score_all(
    students: Mapping[str, TrainConfig], failed: dict[str, str], test: Location | None, ranks: Ranks
) -> dict[str, dict]:
    """The row of each student that hasn't failed. Students that can't be scored are added to `failed`."""
    rows = {}
    for name, config in students.items():
        if name not in failed:
            try:
                rows[name] = _score(config, test, ranks)
            except ReskdError as error:
                if ranks.world > 1:  # the other ranks may not have this error
                    raise
                failed[name] = str(error)
    return rows


def _score(config: TrainConfig, test: Location | None, ranks: Ranks) -> dict:
    """The row of a finished student. Its last weights are evaluated on `test`, unless its test.json is of these weights."""
    result, metrics = ranks.from_first(partial(_stored_scores, config, test))
    if metrics is None:
        metrics = evaluate(EvaluateConfig(checkpoint=config.output / "last.safetensors", data=test, amp=config.amp,
                      output=config.output / "test.json", batch_size=64, loader=config.loader))  # fmt: skip
    headline = metrics.get("headline")
    return {
        "score": metrics.get(headline),
        "headline": headline,
        "gflops": result["gmacs"],
        "clips_seen": result["clips_seen"],
    }


def _stored_scores(config: TrainConfig, test: Location | None) -> tuple[dict, dict | None]:
    """The result of a finished student, and its stored metrics; None: its last weights are still to be evaluated on `test`."""
    result = read_result(config.output / "result.json")
    if test is None:
        return result, result["best"] or {}
    stored, weights = config.output / "test.json", config.output / "last.safetensors"
    if isinstance(weights, Path):
        tables = stored.with_name("test.classes.csv")  # written last, unless it can't be
        current = stored.exists() and tables.exists() and stored.stat().st_mtime_ns >= weights.stat().st_mtime_ns
        metrics = read_result(stored) if current else {}
    else:
        metrics = read_result(stored) if stored.is_file() else {}
        current = metrics.get("checkpoint_etag", "") == weights.etag_or_none()
    return result, metrics if current and metrics.get("data") == str(test) else None
