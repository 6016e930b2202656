"""The demo: every stage on a small real data set, with the functions that the commands call."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cache.store import write_atomically
from stages.config.json_result import read_result
from stages.demo.config import DemoConfig
from stages.demo.digits import make_digits
from stages.demo.plots import contact_sheet, learning_curves
from stages.demo.runs import (
    LABELLED,
    cache_config,
    run_config,
    run_folders,
    runs_without_cache,
    student_kinds,
    students_folder,
    train_beside,
    train_students,
    train_teacher,
    train_without_cache,
)
from stages.demo.summary import print_summary, summarise
from stages.demo.use_student import export_student, predict_videos, print_predictions
from stages.prepare.prepare import prepare
from stages.report.report import write_report
from stages.runtime.beside import beside
from stages.runtime.distributed import cores
from stages.runtime.lock import locked
from stages.runtime.log import read_metrics
from stages.runtime.memory import peak_memory
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.stage_timer import stage_timer
from stages.shards.classes import read_classes
from stages.shards.dataset import open_dataset
from stages.teacher.cache_teacher import cache_teacher

SPLITS = ("train", "val", "test")
# A TSN's mean over frames is the same for opposite directions; a Swin this small finds no digits in so few epochs.
LABELS = {"tsn": "digit", "swin": "direction"}


def run_demo(config: DemoConfig) -> dict:
    """Run the stages that aren't done yet. Write summary.json, curves.png, views.png and report.html. Returns the summary:

    {"teacher" | "baseline" | "distilled": {"top1", "top1_std", "per_seed": in percent, "gflops": per clip}, "cost",
    "wall_s", "peak_rss_mb": of the whole process tree, "seeds", "epochs_times"}. With `config.unlabelled`, "unlabelled" is
    a student that is distilled from all clips; the other students see only the labelled clips. A rerun reports the seconds
    of the first run, because finished stages are not timed again.
    """
    out, folder, kinds = config.output, students_folder(config), student_kinds(config)
    with locked(out), _peak_memory(out / "memory.json") as peak:
        folder.mkdir(parents=True, exist_ok=True)
        timed, seconds = stage_timer(out / "seconds.json")
        timed_here, seconds_here = stage_timer(folder / "seconds.json") if folder != out else (timed, seconds)
        timed("draw and encode clips", lambda: _draw(config))
        timed("prepare", lambda: _prepare(config))
        with _without_teacher(config, timed_here) as train_or_wait:
            teacher = train_teacher(config, timed)
            caches = [cache_config(config, kind) for kind in kinds.values() if kind.cache]
            cached = [timed(f"cache-teacher {stored.output.stem}", partial(cache_teacher, stored)) for stored in caches]
            for name, kind in kinds.items():
                if kind.cache:
                    train_students(config, name, timed_here)
            train_or_wait()
        runs = {name: run_folders(config, name) for name in kinds}
        student = runs["distilled"][0] / "last.safetensors"
        timed_here("export", partial(export_student, student, out / "data" / "test", folder / "student"))
        lines = timed_here(
            "predict", partial(predict_videos, student, out / "videos" / "test", folder / "predictions.jsonl")
        )
        summary = summarise(config, teacher, runs, cached, seconds | seconds_here) | {"peak_rss_mb": peak()}
        write_atomically(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        _draw_pictures(config, teacher, runs)
        with warn_if_it_fails(f"{out / 'report.html'}"):
            write_report([out], out / "report.html")
    with warn_if_it_fails("the tables of the summary"):
        print_predictions(lines)
        print_summary(summary, out, folder)
    return summary


@contextlib.contextmanager
def _without_teacher(config: DemoConfig, timed: Callable) -> Iterator[Callable[[], None]]:
    """Gives a function that trains the students that need no cache. Where a core idles, they are trained in the meantime, and
    it only waits."""
    unfinished = not all((run / "test.json").exists() for run in runs_without_cache(config))
    if unfinished and config.side_by_side and cores() > 1:
        with beside(partial(train_beside, config)) as join:
            yield partial(timed, "wait for the baselines", join)
    else:
        yield partial(train_without_cache, config, timed)


def _draw_pictures(config: DemoConfig, teacher: Path, runs: dict[str, list[Path]]) -> None:
    folder = students_folder(config)
    curves = {f"{kind} {s}": read_metrics(run) for kind, folders in runs.items() for s, run in enumerate(folders)}
    with warn_if_it_fails(f"{folder / 'curves.png'}"):
        learning_curves(folder / "curves.png", curves, read_metrics(teacher))
    with warn_if_it_fails(f"{folder / 'views.png'}"):
        last = [cache_config(config, kind) for kind in student_kinds(config).values() if kind.cache][-1]
        size = run_config(config, "distilled", 0).size
        contact_sheet(folder / "views.png", open_dataset(last.data), last.output, size)


def _draw(config: DemoConfig) -> None:
    make_digits(
        config.output / "videos",
        clips=config.clips.model_dump(),
        size=config.video_size,
        frames=config.video_frames,
        labels=LABELS.get(config.model, "digit-direction"),
    )


def _prepare(config: DemoConfig) -> None:
    """Prepare the splits. With `unlabelled`, also `few` (the labelled training clips) and `mixed` (all training clips)."""
    videos, data = config.output / "videos", config.output / "data"
    for split in SPLITS:
        prepare(videos / split, data / split)
    if not config.unlabelled:
        return
    names = sorted(path.relative_to(videos).as_posix() for path in (videos / "train").glob("*/*"))
    kept = {name for i, name in enumerate(names) if i % LABELLED == 0}
    label = {name: name.split("/")[1] if name in kept else "" for name in names}
    for subset, chosen in (("few", sorted(kept)), ("mixed", names)):
        write_atomically(videos / f"{subset}.csv", "".join(f"{name},{label[name]}\n" for name in chosen).encode())
        prepare(videos / f"{subset}.csv", data / subset, classes=read_classes(data / "train"))


@contextlib.contextmanager
def _peak_memory(path: Path) -> Iterator[Callable[[], float]]:
    """Gives a function that returns the peak memory of the process tree in MB. The peak is kept in `path` over reruns."""
    with peak_memory(so_far=read_result(path) if path.exists() else 0.0) as peak:
        try:
            yield peak
        finally:
            write_atomically(path, json.dumps(peak()).encode())
