"""A sweep: many students of one teacher, in as few streams of clips as they fit into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.table import Table

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.runtime.distributed import Ranks, join_ranks
from stages.runtime.interrupt import RUN_AGAIN, Interrupted
from stages.runtime.lock import locked
from stages.runtime.log import console
from stages.runtime.stage_timer import stage_timer
from stages.shards.dataset import open_dataset
from stages.shards.labels import check_labels
from stages.student.cohort import shared_keys
from stages.student.config import TrainConfig
from stages.student.loop import Failed
from stages.student.train_student import train_cohort
from stages.sweep.cost import teacher_cost
from stages.sweep.pareto_front import identity, over_seeds, pareto_front, show_front
from stages.sweep.plot import pareto

OURS = {"sweep.json", "sweep.png", "seconds.json", "passes.json"}


def run_sweep(
    students: Mapping[str, TrainConfig], *, at_once: int = 8, test: Path | None = None, dry_run: bool = False
) -> dict:
    """Train and score what isn't done yet; returns (and writes) sweep.json, beside the students' folders and sweep.png.

    Students that can share a stream (see `training.shared.SHARED`) are trained as cohorts of at most `at_once`, the others
    one cohort after another. `test`: a data set on which the last weights are scored; without it, it is each one's best
    validation. A rerun goes on where the sweep was; students may be added.
    {"students": {name: {"score": by the "headline", top1 or map, "gflops", ...}}, "points": over seeds, "front": names on
    the Pareto front of the score over GFLOPs, "ledger", "failed": {name: reason}}. Several ranks train each cohort
    together, and rank 0 writes.
    Raises ReskdError before any training for a student that can't be trained, or whose folder holds another run, and at
    the end where some failed.
    """
    out, cohorts = _folder(students), _cohorts(students, at_once)
    _check(students, test)
    with join_ranks() as ranks:
        if ranks.first:
            _say_plan(cohorts, at_once)
        for cohort in cohorts:  # what a later one lacks is said before the first begins
            with console.capture() as said:
                train_cohort(cohort, dry_run=True, resume=True)
            if dry_run and ranks.first:
                console.print(said.get(), markup=False, highlight=False, end="")
        if dry_run:
            return {"cohorts": [list(cohort) for cohort in cohorts]}
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / "sweep.json") if ranks.first else nullcontext():
            failed, seconds = _train(cohorts, out, ranks)
            rows = {}
            for name, config in students.items():
                if name not in failed:
                    try:
                        rows[name] = _scored(config, test, ranks)
                    except ReskdError as error:
                        if ranks.world > 1:  # it may be this rank's alone
                            raise
                        failed[name] = str(error)
            result = ranks.gather(_report(students, rows, failed, seconds, out, test) if ranks.first else None)[0]
    if failed:
        raise ReskdError(f"{len(failed)} of {len(students)} students failed:\n"
                         + "\n".join(dict.fromkeys(failed.values())) + "\nrun it again: what is done stays")  # fmt: skip
    return result


def _report(
    students: Mapping[str, TrainConfig],
    rows: Mapping[str, dict],
    failed: Mapping[str, str],
    seconds: Mapping[str, float],
    out: Path,
    test: Path | None,
) -> dict:
    """Write sweep.json and sweep.png of what is done (`rows`), and print it."""
    done = {name: students[name] for name in rows}
    points = over_seeds(done, rows)
    ledger, front = _ledger(done, out, seconds), pareto_front(points)
    result = {
        "students": rows,
        "points": [{"name": p.name, "gflops": p.gflops, "score": p.mean, "score_std": p.std} for p in points],
        "front": [point.name for point in front],
        "ledger": ledger,
        "failed": failed,
    }
    write_atomically(out / "sweep.json", (json.dumps(result, indent=2) + "\n").encode())
    if points:
        by = "mAP" if any(row["headline"] == "map" for row in rows.values()) else "top-1"
        on = test or "validation, each at its best"
        pareto(out / "sweep.png", points, front, f"{by} on {on}, %")
        show_front(points, front, f"{by} %", f"on {on}")
        console.print(f"written: {out}/sweep.json, sweep.png", highlight=False)
    _show_ledger(ledger)
    return result


def _check(students: Mapping[str, TrainConfig], test: Path | None) -> None:
    """Refuse before work what would be found after it."""
    if taken := OURS & students.keys():
        raise ReskdError(f"a student can't be called {min(taken)}: the sweep writes a file of that name")
    alike: dict[str, str] = {}
    for name, config in students.items():
        other = alike.setdefault(identity(config, "output"), name)
        if other != name:
            raise ReskdError(f"the students {other} and {name} are the same: leave one out, or give it another seed")
    if test is None:
        if any(config.data.val is None for config in students.values()):
            console.print("[yellow]warning[/] no data.val and no --test: such students are trained and not scored")
        return
    data = open_dataset(test)
    data.check_files()
    if not check_labels(data, single=False)["labelled"]:
        raise ReskdError(f"--test {test}: none of its clips has a label; give a labelled data set")
    for train in {config.data.train for config in students.values()}:
        if open_dataset(train).classes != data.classes:
            raise ReskdError(f"--test {test} has other classes than {train}: prepare both with one class list "
                             f"(prepare --class-order {train})")  # fmt: skip


def _train(
    cohorts: Sequence[Mapping[str, TrainConfig]], out: Path, ranks: Ranks
) -> tuple[dict[str, str], dict[str, float]]:
    """Name -> reason of the students that failed, and the seconds of each cohort (rank 0's); notes the epochs that were
    decoded."""
    timed, seconds = stage_timer(out / "seconds.json") if ranks.first else ((lambda _, stage: stage()), {})
    failed: dict[str, str] = {}
    for cohort in cohorts:
        pending = [name for name, config in cohort.items() if not (config.output / "result.json").exists()]
        if pending and ranks.first:
            _note_passes(out, " + ".join(pending), max(cohort[name].schedule.epochs for name in pending))
        try:
            timed(" + ".join(cohort), partial(train_cohort, cohort, resume=True, go_on=RUN_AGAIN))
        except Interrupted:
            raise
        except Exception as error:  # of one alone, anything: the next cohort is not to suffer for it
            if ranks.world > 1 and not isinstance(error, Failed):  # which alone all ranks are sure to share
                raise
            missing = [name for name in pending if not (cohort[name].output / "result.json").exists()]
            if not missing:
                raise
            said = str(error) if isinstance(error, ReskdError) else f"{type(error).__name__}: {error}"
            failed |= dict.fromkeys(missing, said)
    return failed, seconds


def _note_passes(out: Path, cohort: str, epochs: int) -> None:
    """One stream of so many epochs, which a rerun goes on with."""
    passes = _passes(out) | {cohort: epochs}
    write_atomically(out / "passes.json", (json.dumps(passes) + "\n").encode())


def _passes(out: Path) -> dict[str, int]:
    file = out / "passes.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _cohorts(students: Mapping[str, TrainConfig], at_once: int) -> list[dict[str, TrainConfig]]:
    """Students that agree on the stream together, at most `at_once` of them, in their order."""
    streams: dict[str, list[str]] = {}
    for name, config in students.items():
        streams.setdefault(json.dumps(shared_keys(config), sort_keys=True), []).append(name)
    return [
        {name: students[name] for name in names[i : i + at_once]}
        for names in streams.values()
        for i in range(0, len(names), at_once)
    ]


def _folder(students: Mapping[str, TrainConfig]) -> Path:
    folders = {config.output.parent for config in students.values()}
    if len(folders) != 1:
        raise ReskdError(f"a sweep's students lie in one folder: remove their own `output` ({len(folders)} are given)")
    return folders.pop()


def _scored(config: TrainConfig, test: Path | None, ranks: Ranks) -> dict:
    result = json.loads((config.output / "result.json").read_text())
    metrics = result["best"] or {}
    if test is not None:
        scored, weights = config.output / "test.json", config.output / "last.safetensors"
        current = (
            scored.exists() and scored.stat().st_mtime_ns >= weights.stat().st_mtime_ns
        )  # not of a run replaced since
        metrics = json.loads(scored.read_text()) if current else {}
        if ranks.any(metrics.get("data") != str(test)):
            metrics = evaluate(EvaluateConfig(checkpoint=weights, data=test, output=scored,
                                              amp=config.amp, batch_size=64, loader=config.loader))  # fmt: skip
    headline = metrics.get("headline")
    return {
        "score": metrics.get(headline),
        "headline": headline,
        "gflops": result["gmacs"],
        "clips_seen": result["clips_seen"],
    }


def _ledger(done: Mapping[str, TrainConfig], out: Path, seconds: Mapping[str, float]) -> dict:
    """What the teacher and decoding were paid for; alone, each student would have decoded each of its epochs."""
    runs: dict[Path, list[Path]] = {}
    for config in done.values():
        if config.data.cache:
            runs.setdefault(config.data.cache, []).append(config.output)
    return {
        **teacher_cost(runs),
        "decode_passes": sum(_passes(out).values()),
        "decode_passes_alone": sum(config.schedule.epochs for config in done.values()),
        "seconds": dict(seconds),
    }


def _say_plan(cohorts: Sequence[Mapping[str, TrainConfig]], at_once: int) -> None:
    table = Table("cohort", "students", "epochs decoded", title=f"sweep: at most {at_once} students on one stream")
    for number, cohort in enumerate(cohorts, 1):
        table.add_row(str(number), " ".join(cohort), str(max(c.schedule.epochs for c in cohort.values())))
    console.print(table)


def _show_ledger(ledger: dict) -> None:
    table = Table("ledger", "this sweep", "each alone, the teacher in the loop")
    table.add_row("teacher clip·views", f"{ledger['teacher_clip_views']:,}", f"{ledger['in_loop_clip_views']:,}")
    if ledger["teacher_hours"] is not None:
        table.add_row("teacher hours", f"{ledger['teacher_hours']:.3g}", f"{ledger['in_loop_hours']:.3g}")
    table.add_row("passes of decoding", str(ledger["decode_passes"]), str(ledger["decode_passes_alone"]))
    table.add_row("hours of training", f"{sum(ledger['seconds'].values()) / 3600:.3g}", "")
    console.print(table)
