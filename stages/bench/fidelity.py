"""The fidelity study: does a student lose accuracy if it replays its teacher from a cache, and with which encodings?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cache.store import write_atomically
from stages.bench.arms import (
    LABELS,
    ONLINE,
    VIEWS,
    Arm,
    encoding_arms,
    first_arms,
    packed_arm,
    plain_arm,
    reference_arm,
    schedule_arms,
    wide_arms,
)
from stages.bench.config import StudyConfig
from stages.bench.fidelity_runs import make_cache, make_data, run_arm, train_teacher
from stages.bench.figures import Figure, picture_path, show
from stages.bench.outcomes import (
    RESOLVED,
    Outcome,
    draw,
    labels_arm,
    no_worse,
    paired_difference,
    print_table,
    steps_to,
)
from stages.bench.processes import in_processes
from stages.metrics.spread import SeedScores
from stages.runtime.lock import locked
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console

RUNS = "stages.bench.fidelity_runs"  # what a process of the study imports


def run_fidelity(config: StudyConfig, output: Path | None) -> list[Figure]:
    """Train the students that aren't trained yet. Print and return the figures, and write them into `output`.

    `config.output`/study.json holds all results. fidelity.png shows accuracy over bytes.
    """
    with locked(config.output):
        make_data(config)
        names = ["teacher"] if config.quick else ["teacher", "wide"]
        nets = dict(in_processes({name: partial(train_teacher, config, name) for name in names}, config.jobs, RUNS))
        run = partial(_run_arms, config)
        outcomes = run(first_arms(config.quick))
        views = _fewest_views(outcomes)
        console.print(
            f"V = {views} views are the fewest that match the teacher in the loop: encodings are compared with V = {views}"
        )
        encoded = run(encoding_arms(views, nets["teacher"].width, nets["teacher"].student_grid, config.quick))
        outcomes |= encoded
        best = _best(outcomes, encoded)
        outcomes |= run([packed_arm(best)])
        if not config.quick:
            wide = wide_arms(views, nets["wide"].width, nets["wide"].student_grid)
            outcomes |= run([*wide, *schedule_arms([LABELS, ONLINE, best])])
    figures = _figures(outcomes)
    _write(config, outcomes, best, views)
    print_table(outcomes, config, views, {name: net.top1 for name, net in nets.items()})
    show("fidelity", figures, output)
    picture = picture_path(output, config.output / "fidelity.png")
    with warn_if_it_fails(f"{picture}"):
        draw(picture, outcomes)
    return figures


def _run_arms(config: StudyConfig, arms: Sequence[Arm]) -> dict[str, Outcome]:
    """The outcome of each arm by name. Caches are made one after another; students are trained in parallel."""
    sizes = {arm.name: make_cache(config, arm) for arm in arms}
    ordered = sorted(arms, key=lambda arm: -arm.schedule * (2 if arm.teacher == "online" else 1))  # long ones first
    seeds = {arm.name: range(_seeds(config, arm)) for arm in arms}
    tasks = {(arm.name, s): partial(run_arm, config, arm, s) for arm in ordered for s in seeds[arm.name]}
    results: dict[tuple[str, int], dict] = {}
    with progress_bar("students") as bar:
        task, started = bar.add_task("students", total=len(tasks), rate=0.0, note=""), time.perf_counter()
        for (name, seed), result in in_processes(tasks, config.jobs, RUNS):
            results[name, seed] = result
            rate = len(results) / (time.perf_counter() - started)
            bar.update(task, advance=1, rate=rate, note=f"{name}, seed {seed}: {result['top1']:.1f} %")
    outcomes = {}
    for arm in arms:
        arm_results = [results[arm.name, seed] for seed in seeds[arm.name]]
        curves = tuple(tuple(map(tuple, r["curve"])) for r in arm_results)
        top1 = SeedScores(tuple(r["top1"] for r in arm_results))
        outcomes[arm.name] = Outcome(arm, top1, curves, sizes[arm.name])
    return outcomes


def _seeds(config: StudyConfig, arm: Arm) -> int:
    more = config.compared_seeds if arm.compared and not config.quick else None
    return max(config.seeds, more or 0)


def _fewest_views(outcomes: dict[str, Outcome]) -> int:
    """The smallest V whose students are no worse than with the teacher in the loop; the largest V if there is none."""
    tried = {v: outcomes[f"replay, V = {v}"] for v in VIEWS if f"replay, V = {v}" in outcomes}
    return min((v for v, outcome in tried.items() if no_worse(outcome, outcomes[ONLINE.name])), default=max(tried))


def _best(outcomes: dict[str, Outcome], encoded: dict[str, Outcome]) -> Arm:
    """The encoding with the fewest bytes that is no worse than the teacher in the loop. Encodings on a student's grid don't
    count: they serve only students of that grid."""
    general = [o for o in encoded.values() if not (o.arm.features or {}).get("grid")]
    good = [o for o in general if no_worse(o, outcomes[ONLINE.name])] or general
    return min(good, key=lambda o: o.bytes or 0).arm


def _figures(outcomes: dict[str, Outcome]) -> list[Figure]:
    figures = []
    for name, outcome in outcomes.items():
        figures.append(Figure(f"{name}: top-1", outcome.top1.mean, "%", outcome.top1.std))
        reference = reference_arm(outcome.arm)
        if outcome.arm.teacher == "cached" and reference.name in outcomes:
            difference, error = paired_difference(outcome, outcomes[reference.name])
            ok = no_worse(outcome, outcomes[reference.name])
            goal = f">= -max({RESOLVED}, 2 standard errors)"
            figures.append(Figure(f"{name}: minus {reference.name}", difference, "points", error, goal, ok))
        if plain := outcomes.get(plain_arm(outcome.arm) or ""):
            difference, error = paired_difference(outcome, plain)
            goal, ok = ">= -2 standard errors", difference >= -2 * error
            figures.append(Figure(f"{name}: minus {plain.arm.name}", difference, "points", error, goal, ok))
    return figures


def _write(config: StudyConfig, outcomes: dict[str, Outcome], best: Arm, views: int) -> None:
    rows = []
    for name, o in outcomes.items():
        goal = labels_arm(outcomes, o.arm)
        steps = None if goal is None else steps_to(o.curves, goal.curves)
        rows.append({"arm": name, "top1": o.top1.values, "mean": o.top1.mean, "std": o.top1.std, "bytes": o.bytes,
                     "schedule": o.arm.schedule, "steps_to_labels": steps, "curves": o.curves})  # fmt: skip
    study = {"config": config.model_dump(mode="json"), "views": views, "best": best.name, "arms": rows}
    write_atomically(config.output / "study.json", (json.dumps(study, indent=1) + "\n").encode())
