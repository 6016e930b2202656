"""The study on real video: choices on held-out sources, then the claim on all splits. A rerun goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cache.errors import ReskdError
from stages.bench.figures import Figure, picture_path, show
from stages.bench.processes import in_processes
from stages.bench.real.arms import (
    LABELS,
    UPPER,
    UPSTREAM,
    Arm,
    combined_arms,
    detail_arms,
    screening_arms,
    sized,
    with_few_labels,
)
from stages.bench.real.budget import Part, plan_parts
from stages.bench.real.config import RealConfig, check_same_study
from stages.bench.real.probe import probe
from stages.bench.real.results import Results, claim_figures, draw, print_tables
from stages.bench.real.runs import CHOICE, StudentRun, make_caches, make_data, train_net, train_runs
from stages.runtime.lock import locked
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console

RUNS = "stages.bench.real.runs"  # what a process of the study imports
TOGETHER = 3  # students on one stream: more would leave other cores idle
COMBINATIONS = "combinations"
COSTLY = replace(UPSTREAM, name="best")  # stands for the best arm in the plan
LONG = 3  # length 3 is three times length 1


def run_real(config: RealConfig, output: Path | None) -> list[Figure]:
    """Train what isn't trained yet. Print and return the figures, and write them into `output`.

    `config.output`/study.json holds all results; real.png shows accuracy over epochs, and the choices.
    """
    with locked(config.output):
        clips = make_data(config)
        splits = [side for side in clips if side != CHOICE]
        planned = _parts(config, splits, config.lengths[len(config.lengths) // 2], COSTLY, {})
        check_same_study(config)
        fitting, results = plan_parts(config, planned, clips), Results(config)
        if not {part.name for part in planned[:2]} <= set(fitting):
            raise ReskdError(f"core_hours {config.core_hours:g}: {planned[0].name} and {planned[1].name} don't fit, and without "
                             "them there is nothing to choose: raise --core-hours, or screen fewer `arms`")  # fmt: skip
        _do(config, planned[0], results)
        length = results.length_one()
        results.frozen = _probe(config)
        _do(config, _parts(config, splits, length, UPSTREAM, {})[1], results)
        if COMBINATIONS in fitting:
            _do(config, Part(COMBINATIONS, _choice_runs(config, results.combinations(length), length)), results)
        best = results.best_arm(length)
        for part in _parts(config, splits, length, best, results.rates(length))[2:]:
            if part.name in fitting and part.name != COMBINATIONS:
                _do(config, part, results)
        results.write()
        figures = claim_figures(results, length, best)
    print_tables(results, length, best)
    show("real", figures, output)
    picture = picture_path(output, config.output / "real.png")
    with warn_if_it_fails(f"{picture}"):
        draw(picture, results, length, best)
    return figures


def _parts(config: RealConfig, splits: Sequence[str], length: int, best: Arm, rates: Mapping[str, float]) -> list[Part]:
    """The parts of the study, in order. Before the choices are made, `best` and `rates` stand for what they will be."""
    middle = config.rates[len(config.rates) // 2]

    def on_splits(arms: Sequence[Arm], seed: int, epochs: int) -> list[StudentRun]:
        def rate(arm: Arm) -> float:
            alike = best.name if arm.teacher else LABELS.name  # an arm that no choice was made for
            return rates.get(arm.name, rates.get(alike, middle))

        return [StudentRun(arm, split, seed, rate(arm), epochs) for split in splits for arm in arms]

    def at_both_lengths(name: str, arms: Sequence[Arm]) -> list[Part]:
        return [Part(f"{name}, length {times}, seed {seed}", on_splits(arms, seed, times * length))
                for seed in range(config.seeds) for times in (1, LONG)]  # fmt: skip

    lengths = [StudentRun(LABELS, CHOICE, 0, rate, epochs) for epochs in config.lengths for rate in config.rates]
    others = [sized(arm, size) for size in config.other_sizes for arm in (LABELS, best)]
    few = [with_few_labels(arm) for arm in (LABELS, best)]
    parts = [
        Part("length 1", lengths),
        Part("screening", _choice_runs(config, _screened(config), length)),
        Part(COMBINATIONS, _choice_runs(config, combined_arms(UPSTREAM, UPSTREAM), length)),
        *at_both_lengths("claim", [LABELS, best]),
        Part(UPPER.name, on_splits([UPPER], 0, length)),
        *([] if best == UPSTREAM else at_both_lengths(UPSTREAM.name, [UPSTREAM])),
        Part("other sizes", on_splits(others, 0, length)),
        Part("a tenth of the labels", on_splits(few, 0, length)),
        Part("views and encodings", on_splits(detail_arms(best), 0, length)),
    ]
    return [part for part in parts if part.runs and (not config.quick or part.name in ("length 1", "screening"))]


def _probe(config: RealConfig) -> dict[tuple[str, int], float]:
    """(net, px) -> top-1 of frozen nets: the teacher's at its size, the student's at both sizes."""
    nets = dict.fromkeys([("lite2", config.teacher_size), ("lite0", config.teacher_size), ("lite0", config.size)])
    return dict(in_processes({net: partial(probe, config, *net) for net in nets}, config.jobs, RUNS))


def _screened(config: RealConfig) -> list[Arm]:
    """The arms of the screening. Raises ReskdError for a name that none has."""
    arms = {arm.name: arm for arm in screening_arms(config.quick)}
    if unknown := [name for name in config.arms or () if name not in arms]:
        raise ReskdError(f"arms: {unknown[0]!r} is none of {', '.join(map(repr, arms))}")
    return [arm for name, arm in arms.items() if config.arms is None or name in config.arms]


def _choice_runs(config: RealConfig, arms: Sequence[Arm], length: int) -> list[StudentRun]:
    return [StudentRun(arm, CHOICE, 0, rate, length) for arm in arms for rate in config.rates]


def _do(config: RealConfig, part: Part, results: Results) -> None:
    """Train the teachers, make the caches, and train the students of a part."""
    runs = [run for run in part.runs if run.name not in results.students]
    nets = sorted({(r.arm.teacher, r.side) for r in runs if r.arm.teacher in ("tuned", "early")} - results.nets.keys())
    caches: dict[str, list[StudentRun]] = {}
    for run in runs:
        if run.arm.teacher and not run.arm.in_the_loop:
            caches.setdefault(f"{run.side}, {run.arm.teacher}, {dict(run.arm.features)}", []).append(run)
    console.print(f"{part.name}: {len(nets)} teachers, {len(caches)} caches, {len(runs)} students", highlight=False)
    results.nets |= dict(in_processes({net: partial(train_net, config, *net) for net in nets}, config.jobs, RUNS))
    tasks = {name: partial(make_caches, config, stored) for name, stored in caches.items()}
    results.caches |= dict(in_processes(tasks, config.jobs, RUNS))
    _train(config, part.name, runs, results)


def _train(config: RealConfig, name: str, runs: Sequence[StudentRun], results: Results) -> None:
    streams: dict[tuple, list[StudentRun]] = {}
    for run in runs:
        streams.setdefault(run.stream, []).append(run)
    groups = [rs[i : i + TOGETHER] for rs in streams.values() for i in range(0, len(rs), TOGETHER)]
    groups.sort(key=lambda group: -sum(run.epochs * (10 if run.arm.large else 1) for run in group))  # long ones first
    tasks = {i: partial(train_runs, config, group) for i, group in enumerate(groups)}
    with progress_bar("students") as bar:
        task, started = bar.add_task(name, total=len(runs), rate=0.0, note=""), time.perf_counter()
        for i, outcomes in in_processes(tasks, config.jobs, RUNS):
            results.add(groups[i], outcomes)
            results.write()
            last = f"{groups[i][-1].arm.name}: {outcomes[-1]['top1']:.1f} %"
            bar.advance(task, len(outcomes))
            bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started), note=last)
