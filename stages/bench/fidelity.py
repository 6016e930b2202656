"""The fidelity study: what a student loses, or not, when its teacher is replayed from a cache, and how it is stored."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache.store import write_atomically
from stages.bench.arms import (
    LABELS,
    ONLINE,
    VIEWS,
    Arm,
    encoding_arms,
    first_arms,
    packed_arms,
    plain,
    reference,
    schedule_arms,
    wide_arms,
)
from stages.bench.config import StudyConfig
from stages.bench.fidelity_runs import cache_of, make_data, run_arm, train_teacher
from stages.bench.figures import Figure, show
from stages.bench.outcomes import RESOLVED, Outcome, draw, labels_of, no_worse, paired, print_table, steps_to
from stages.runtime.lock import locked
from stages.runtime.log import console, progress_bar


def run_fidelity(config: StudyConfig, output: Path | None) -> list[Figure]:
    """Train every arm's students that aren't trained yet; print, write and return what came out.

    `config.output`/study.json holds all of it, fidelity.png accuracy against bytes; `output` the figures.
    """
    with locked(config.output):
        make_data(config)
        names = ["teacher"] if config.quick else ["teacher", "wide"]
        nets = dict(_in_processes(config, {name: partial(train_teacher, config, name) for name in names}))
        run = partial(_outcomes, config)
        found = run(first_arms(config.quick))
        views = _fewest_views(found)
        console.print(f"V = {views} is the fewest that matches the teacher in the loop: encodings are compared there")
        encoded = run(encoding_arms(views, nets["teacher"].width, nets["teacher"].student_grid, config.quick))
        found |= encoded
        best = _best(found, encoded)
        found |= run(packed_arms(best, config.quick))
        if not config.quick:
            wide = wide_arms(views, nets["wide"].width, nets["wide"].student_grid)
            found |= run([*wide, *schedule_arms([LABELS, ONLINE, best])])
    figures = _figures(found)
    _write(config, found, best, views)
    print_table(found, config, views, {name: net.top1 for name, net in nets.items()})
    draw((output or config.output / "fidelity.json").with_suffix(".png"), found)
    show("fidelity", figures, output)
    return figures


def _outcomes(config: StudyConfig, arms: Sequence[Arm]) -> dict[str, Outcome]:
    """Outcome by arm's name. Caches are made one after another, students on every core."""
    sizes = {arm.name: cache_of(config, arm) for arm in arms}
    ordered = sorted(arms, key=lambda arm: -arm.schedule * (2 if arm.teacher == "online" else 1))  # long ones first
    seeds = {arm.name: range(_seeds(config, arm)) for arm in arms}
    tasks = {(arm.name, s): partial(run_arm, config, arm, s) for arm in ordered for s in seeds[arm.name]}
    results: dict[tuple[str, int], dict] = {}
    with progress_bar("students") as bar:
        task, started = bar.add_task("students", total=len(tasks), rate=0.0, note=""), time.perf_counter()
        for (name, seed), result in _in_processes(config, tasks):
            results[name, seed] = result
            rate = len(results) / (time.perf_counter() - started)
            bar.update(task, advance=1, rate=rate, note=f"{name}, seed {seed}: {result['top1']:.1f} %")
    outcomes = {}
    for arm in arms:
        of_arm = [results[arm.name, seed] for seed in seeds[arm.name]]
        curves = tuple(tuple(map(tuple, r["curve"])) for r in of_arm)
        outcomes[arm.name] = Outcome(arm, tuple(r["top1"] for r in of_arm), curves, sizes[arm.name])
    return outcomes


def _seeds(config: StudyConfig, arm: Arm) -> int:
    more = config.compared_seeds if arm.compared and not config.quick else None
    return max(config.seeds, more or 0)


def _in_processes(config: StudyConfig, tasks: Mapping[Any, Callable[[], Any]]) -> Iterator[tuple[Any, Any]]:
    """(key, result) of each task as it ends; every process keeps the decoded clips and one thread."""
    workers = min(config.jobs or os.cpu_count() or 1, len(tasks))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_quiet) as pool:
        futures = {pool.submit(task): key for key, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _quiet() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    console.quiet = True


def _fewest_views(found: dict[str, Outcome]) -> int:
    """The smallest V whose students are no worse than with the teacher in the loop; all of them where none is."""
    tried = {v: found[f"replay, V = {v}"] for v in VIEWS if f"replay, V = {v}" in found}
    return min((v for v, outcome in tried.items() if no_worse(outcome, found[ONLINE.name])), default=max(tried))


def _best(found: dict[str, Outcome], encoded: dict[str, Outcome]) -> Arm:
    """The encoding of the fewest bytes, for any student, that is no worse than the teacher in the loop."""
    general = [o for o in encoded.values() if not (o.arm.features or {}).get("grid")]
    good = [o for o in general if no_worse(o, found[ONLINE.name])] or general
    return min(good, key=lambda o: o.bytes or 0).arm


def _figures(found: dict[str, Outcome]) -> list[Figure]:
    figures = []
    for name, outcome in found.items():
        figures.append(Figure(f"{name}: top-1", outcome.mean, "%", outcome.std))
        to = reference(outcome.arm)
        if outcome.arm.teacher == "cached" and to.name in found:
            difference, error = paired(outcome, found[to.name])
            ok = None if outcome.arm.mismatch else no_worse(outcome, found[to.name])
            goal = None if ok is None else f">= -max({RESOLVED}, 2 standard errors)"
            figures.append(Figure(f"{name}: minus {to.name}", difference, "points", error, goal, ok))
        if same := found.get(plain(outcome.arm) or ""):
            difference, error = paired(outcome, same)
            goal, ok = ">= -2 standard errors", difference >= -2 * error
            figures.append(Figure(f"{name}: minus {same.arm.name}", difference, "points", error, goal, ok))
    return figures


def _write(config: StudyConfig, found: dict[str, Outcome], best: Arm, views: int) -> None:
    rows = []
    for name, o in found.items():
        goal = labels_of(found, o.arm)
        steps = None if goal is None else steps_to(o.curves, goal.curves)
        rows.append({"arm": name, "top1": o.top1, "mean": o.mean, "std": o.std, "bytes": o.bytes,
                     "schedule": o.arm.schedule, "steps_to_labels": steps, "curves": o.curves})  # fmt: skip
    study = {"config": config.model_dump(mode="json"), "views": views, "best": best.name, "arms": rows}
    write_atomically(config.output / "study.json", (json.dumps(study, indent=1) + "\n").encode())
