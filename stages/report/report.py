"""`pipeline.py report`: one HTML page of runs, sweeps, caches, evaluations and studies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cache.store import side_by_side, write_atomically
from stages.config.json_result import check_writable
from stages.remote.url_path import Location, UrlPath, resolved
from stages.report.cache_sections import caches_section, cost_section, left_out_section, studies_section
from stages.report.caches import CacheFigures, DataFigures, read_cache, read_data_set
from stages.report.evaluations import Evaluation, read_evaluation, with_answers
from stages.report.find_sources import Sources, check_output, find_sources, short_names
from stages.report.page import Page, render_page
from stages.report.parts import Part, Section, Text, row, table
from stages.report.run_sections import curves_section, losses_section, runs_section
from stages.report.runs import Run, read_run
from stages.report.score_sections import classes_section, evaluations_section, fronts_section
from stages.report.seed_groups import group_by_seed
from stages.report.studies import Study, Sweep, read_study, read_sweep
from stages.runtime.terminal import console

T = TypeVar("T")
Problems = list[tuple[str, str]]  # (what, why)


@dataclass(frozen=True)
class Material:
    """All that the page is made of, read."""

    runs: list[Run]
    caches: list[CacheFigures]
    data_sets: list[DataFigures]
    evaluations: list[Evaluation]
    sweeps: list[Sweep]
    studies: list[Study]


def write_report(paths: Sequence[Location], output: Path) -> dict:
    """Read what lies at and below the paths, and write the page. What can't be read is named, and doesn't stop the rest.

    Returns {"output", "runs", "caches", "data_sets", "evaluations", "sweeps", "studies": numbers of them, "problems":
    [[what, why]], "bytes": of the page}.
    Raises ReskdError if none of the paths exists, or the page can't be written or is an input.
    """
    sources = find_sources(paths)
    check_output(output, sources)
    check_writable(output)
    problems: Problems = list(sources.problems)
    material = _read(sources, problems)
    sections = _sections(material, problems)
    if problems:
        rows = [row(what, why) for what, why in problems]
        sections.insert(
            0, Section("problems", "What could not be read", (table("Files and reasons", ("file", "reason"), rows),))
        )
    counts = {kind: len(found) for kind, found in vars(material).items()}
    page = render_page(Page(_title(paths), f"{datetime.now():%Y-%m-%d %H:%M}", _summary(counts), tuple(sections)))
    write_atomically(output, page)
    for what, why in problems:
        console.print(f"[yellow]left out[/] {what}: {why}", soft_wrap=True, highlight=False)
    console.print(f"written: {output} ({_summary(counts)} {len(page) / 1e6:.2f} MB)", highlight=False, soft_wrap=True)
    return {"output": str(output), **counts, "problems": [list(problem) for problem in problems], "bytes": len(page)}


def _read(sources: Sources, problems: Problems) -> Material:
    def read_all(found: Sequence[Any], read: Callable[[Any, str], T]) -> list[T]:
        def read_one(named: tuple[Any, str]) -> tuple[T | None, Problems]:
            try:
                return read(*named), []
            except Exception as error:  # files of others, and damaged ones: one of them must not cost the page
                return None, [(str(named[0]), f"can't be read ({error or type(error).__name__})")]

        named = list(zip(found, short_names(found), strict=True))
        place = next((path for path in found if isinstance(path, UrlPath)), Path())
        kept = []
        for value, faults in side_by_side(place, read_one, named):
            kept += [] if value is None else [value]
            problems.extend(faults)
        return kept

    read_score = partial(read_evaluation, runs={resolved(run) for run in sources.runs})
    material = Material(
        runs=read_all(sources.runs, read_run),
        caches=read_all(sources.caches, read_cache),
        data_sets=read_all(sources.data_sets, read_data_set),
        evaluations=with_answers(read_all(sources.evaluations, read_score)),
        sweeps=read_all(sources.sweeps, read_sweep),
        studies=read_all(sources.studies, read_study),
    )
    problems += [(found.name, fault) for found in (*material.runs, *material.evaluations) for fault in found.faults]
    return material


def _sections(material: Material, problems: Problems) -> list[Section]:
    runs, caches, evaluations, sweeps = material.runs, material.caches, material.evaluations, material.sweeps
    groups = group_by_seed(runs)
    cache_names = {resolved(cache.path): cache.name for cache in caches}
    evaluated: dict[Location | None, list[Evaluation]] = {}
    for evaluation in evaluations:
        evaluated.setdefault(evaluation.run_folder, []).append(evaluation)
    scores = {run.path: evaluated.get(resolved(run.path), []) for run in runs}
    makers: dict[str, Callable[[], Section | None]] = {
        "runs": lambda: runs_section(runs, scores, cache_names),
        "front": lambda: fronts_section(groups, evaluations, sweeps),
        "curves": lambda: curves_section(groups),
        "losses": lambda: losses_section(groups),
        "accuracy": lambda: evaluations_section(evaluations),
        "classes": lambda: classes_section(evaluations),
        "cost": lambda: cost_section(caches, runs, sweeps),
        "caches": lambda: caches_section(caches),
        "studies": lambda: studies_section(material.studies),
        "quarantine": lambda: left_out_section(material.data_sets, caches),
    }
    sections = []
    for name, make in makers.items():
        try:
            section = make()
        except Exception as error:  # a section less is better than no page
            problems.append((f"the section {name!r}", f"can't be made ({type(error).__name__}: {error})"))
        else:
            sections += [section] if section else []
    if not sections:
        parts: tuple[Part, ...] = (Text("Nothing that this page shows was found."),)
        sections.append(Section("empty", "Nothing to show", parts))
    return sections


def _title(paths: Sequence[Location]) -> str:
    names = [Path(os.path.abspath(path)).name if isinstance(path, Path) else path.name for path in paths]
    return "Report of " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _summary(counts: dict[str, int]) -> str:
    """ "3 runs, 1 cache." """
    singular = {"studies": "study", "data_sets": "data set"}
    names = {kind: (singular.get(kind, kind.removesuffix("s")), kind.replace("_", " ")) for kind in counts}
    found = [f"{count} {names[kind][count > 1]}" for kind, count in counts.items() if count]
    return (", ".join(found) or "nothing") + "."
