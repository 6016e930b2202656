"""Stage two: train students on low-resolution views with the cached targets. Without a cache, plain training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache.store import write_atomically
from stages.config.json_result import read_result
from stages.models.checkpoints import ModelCard, save_model
from stages.models.video_model import model_stats
from stages.remote.url_path import Location
from stages.runtime.distributed import join_ranks
from stages.runtime.lock import locked
from stages.runtime.terminal import console
from stages.stream.order import workers_of_run
from stages.student.checkpoint import check_group, restore
from stages.student.cohort import as_begun, check_shared
from stages.student.cohort_stream import (
    CohortStream,
    decoder_of,
    prepare_cohort,
    teacher_in_the_loop,
    training_batches,
    validation,
)
from stages.student.config import TrainConfig
from stages.student.loop import fit
from stages.student.new_student import NewStudent
from stages.student.run_folder import check_run, check_still_there, open_run
from stages.student.run_upload import CHECKED, NEEDED, RunUpload, fetch_runs
from stages.student.state import load_state
from stages.student.training_run import Progress, start_run


def train_student(config: TrainConfig, **options: Any) -> dict:
    """Train a student (or, without `data.cache`, a teacher or a baseline) and write its run folder `config.output`.

    The folder has config.yaml (with defaults filled in), metrics.jsonl, tensorboard/, last.pt (for --resume),
    last.safetensors, best.safetensors (of the best validation: by mAP where clips have several labels, else by top-1),
    and result.json, which is returned. `options`: see `train_cohort`.
    """
    return train_cohort({"": config}, **options)[""]


def train_cohort(
    configs: Mapping[str, TrainConfig],
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_partial: bool = False,
    dry_run: bool = False,
    go_on: str = "go on with --resume",
) -> dict[str, dict]:
    """Train several students on one stream: clips are decoded and joined with targets once for all. Returns their results.

    Each student becomes what it would become alone (up to floating point), in its own folder. Their configs may differ in
    all keys but cohort.SHARED.
    `resume`: finished students are left alone. `allow_partial`: train on the finished shards of an unfinished cache, and
    print what is left out. `go_on`: what the message of an interruption tells the user to do.
    Raises ReskdError if the students can't share a stream. Raises StudentsFailed for students that failed, once the
    others are finished. Raises Interrupted after a signal, even one at the last step.
    """
    started = time.perf_counter()
    check_shared(configs)
    with join_ranks() as ranks, ExitStack() as opened:
        outputs = [config.output for config in configs.values()]
        uploads: dict[Location, RunUpload] = {}  # on rank 0
        ranks.run_on_first(lambda: uploads.update(fetch_runs(outputs, resume, opened, CHECKED if dry_run else NEEDED)))
        configs = ranks.from_first(partial(as_begun, configs)) if resume else dict(configs)
        stream, students = prepare_cohort(configs, allow_partial, ranks)
        check_folder = partial(check_run, resume=resume, overwrite=overwrite)
        if dry_run:
            for student in students.values() if resume else ():
                ranks.run_on_first(partial(check_folder, student.config))
            return {name: _show_plan(student, stream) for name, student in students.items()}
        for student in students.values():
            if ranks.first and student.config.output not in uploads:
                opened.enter_context(locked(student.config.output))
        for student in students.values():  # all folders are checked before any is changed
            ranks.run_on_first(partial(check_folder, student.config))
            ranks.run_on_first(partial(check_group, student.config, ranks, resume))
        for student in students.values():
            ranks.run_on_first(partial(open_run, student.config, resume=resume, overwrite=overwrite))
        ranks.run_on_first(lambda: [opened.enter_context(upload.behind()) for upload in uploads.values()])
        results = {}
        for name, student in list(students.items()):
            if (result := ranks.from_first(partial(_stored_result, student.config))) is not None:
                console.print(f"{student.config.output}: finished already")
                results[name] = result
                del students[name]
        if students:
            results |= _train(students, stream, uploads, started, go_on)
        return {name: results[name] for name in configs}


def _train(
    students: Mapping[str, NewStudent],
    stream: CohortStream,
    uploads: Mapping[Location, RunUpload],
    started: float,
    go_on: str,
) -> dict[str, dict]:
    """Train the students to their ends, and write weights and results. `started`: when, by `time.perf_counter`."""
    ranks, order = stream.ranks, stream.order
    configs = [student.config for student in students.values()]
    renderings = list(dict.fromkeys((config.size, config.render_via) for config in configs))
    batches_from = training_batches(stream, renderings, max(config.schedule.epochs for config in configs))
    decoder, order_digest = decoder_of(stream), order.digest()
    results = {}

    def save_weights(config: TrainConfig, name: str, model: torch.nn.Module, notes: dict) -> None:
        classes = stream.data.train.classes
        card = ModelCard(config.model, classes, config.size, config.render_via, config.eval_policy, notes)
        save_model(config.folder / f"{name}.safetensors", model, card)

    def write_result(name: str, progress: Progress, failed_clips: int) -> None:
        config = students[name].config
        results[name] = {
            "best": progress.best,
            "steps": progress.step,
            "clips_seen": progress.step * order.group * config.batch_size,
            "failed_clips": failed_clips,
            "gmacs": students[name].gmacs,
            "seconds": time.perf_counter() - started,
        }
        if ranks.first:
            check_folder(config)
            write_atomically(config.folder / "result.json", (json.dumps(results[name], indent=2) + "\n").encode())

    def check_folder(config: TrainConfig) -> None:
        check_still_there(config)
        if config.output in uploads:
            uploads[config.output].check()

    runs = []
    for name, student in students.items():
        config = student.config
        rendering = (config.size, config.render_via)
        run = start_run(
            student,
            ranks,
            order_digest=order_digest,
            steps_per_epoch=order.steps_per_epoch(),
            rendering=None if rendering == renderings[0] else rendering,
            decoder=decoder,
            save_weights=partial(save_weights, config),
            check_folder=partial(check_folder, config),
            on_finish=partial(write_result, name),
        )
        stored = partial(_stored_state, config)  # a local folder is shared by all ranks
        if (checkpoint := stored() if isinstance(config.output, Path) else ranks.from_first(stored)) is not None:
            restore(run, checkpoint)
        runs.append(run)
    if ranks.first and ranks.device.type == "cuda" and any(run.config.amp == "auto" and not run.amp for run in runs):
        console.print("this GPU has no bfloat16: forwards run in float32, which takes more time and memory")
    targets = {target for config in configs for target in config.losses.stored_targets}
    teach = teacher_in_the_loop(stream, targets, torch.bfloat16 if any(run.amp for run in runs) else torch.float32)
    validate = validation(stream, renderings)
    fit(runs, batches_from, order.steps_per_epoch(), teach=teach, validate=validate, go_on=go_on)
    return results


def _stored_result(config: TrainConfig) -> dict | None:
    """The result of a finished run; None for a run that isn't finished."""
    last, result = config.folder / "last.pt", config.folder / "result.json"
    if not result.exists():
        return None
    return read_result(result) if last.exists() or (config.output / last.name).is_file() else None


def _stored_state(config: TrainConfig) -> dict | None:
    """The checkpoint to go on from; None for a run that has none yet."""
    last = config.folder / "last.pt"
    return load_state(last, config.output / last.name) if last.exists() else None


def _show_plan(student: NewStudent, stream: CohortStream) -> dict:
    """Print what `--dry-run` shows, and return it."""
    config, projector, order, replay = student.config, student.student.projector, stream.order, stream.replay
    plan = {
        "output": str(config.output),
        "clips": sum(map(len, order.rows)),
        "steps_per_epoch": order.steps_per_epoch(),
        "steps": order.steps_per_epoch() * config.schedule.epochs,
        "stored_views": replay.views if replay else None,
        "losses": config.losses.model_dump(include=set(config.losses.used)),
        "parameters": model_stats(student.student.model, config.size).parameters,
        "projector": None if projector is None else f"{projector.in_features} -> {projector.out_features} channels",
        "gmacs": student.gmacs,
        "workers": workers_of_run(order, config.loader, stream.ranks.world),
    }
    for name, value in plan.items():
        console.print(f"{name:16} {value}")
    return plan
