"""Stage two: a student on low-resolution views, joined with the cached targets. Without a cache, plain training."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import nullcontext
from functools import partial

import psutil
import torch

from cache.errors import ReskdError
from cache.manifest import Manifest, bytes_of_clip_view
from cache.reader import CacheReader
from cache.reduction import Constants
from cache.store import write_atomically
from cache.view import BLOCK, ViewPolicy
from stages.config import TrainConfig
from stages.data.join import Clips, check_labels
from stages.data.shards import Dataset
from stages.distill.online import OnlineTeacher, open_teacher
from stages.distill.student import Student, build_student
from stages.distill.targets import Meaning, check_targets, needed_targets
from stages.models import Output, VideoModel, build_model, enable_grad_checkpointing, model_stats, place
from stages.models.checkpoints import ModelCard, initialise, save_model
from stages.training.distributed import Ranks, ranks
from stages.training.loading import decoding_workers, in_order
from stages.training.log import console
from stages.training.loop import autocast, fit
from stages.training.metrics import score
from stages.training.order import Order, batches_of_run
from stages.training.packed import Packs, check_packs, decode_by, open_data
from stages.training.replay import Replay, open_replay
from stages.training.state import in_use, load_state, open_run, stored_views

TRAIN_THE_CLASSIFIER = {"cross_entropy", "binary_cross_entropy", "logit_kl", "logit_map_kl"}


def train_student(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_partial: bool = False,
    dry_run: bool = False,
) -> dict:
    """Train a student (or, without `data.cache`, a teacher or a baseline) and write its run folder `config.output`.

    The folder: config.yaml (resolved), metrics.jsonl, tensorboard/, last.pt (for --resume), last.safetensors and
    best.safetensors (of the best validation: by mAP where clips have several labels, else by
    top-1), result.json, which is returned.
    `allow_partial`: train on an unfinished cache's finished shards, saying what is left out.
    """
    started = time.perf_counter()
    with ranks() as at:
        if resume and config.data.cache and config.data.views is None and (views := stored_views(config)):
            config = config.model_copy(update={"data": config.data.model_copy(update={"views": views})})
        data, val, packs = open_data(config)
        _check_data(config, data, val)
        replay = open_replay(config, data, allow_partial) if config.data.cache else None
        online = open_teacher(config.teacher, data, config.model.num_frames) if config.teacher else None
        torch.manual_seed(config.seed)
        model, config = _build(config, data, replay)
        check_packs(config, packs, replay)
        if replay:
            check_targets(replay.manifest, config.losses, _shapes(model, config), config.model.num_frames)
        if config.grad_checkpointing:
            enable_grad_checkpointing(model, compiled=config.compile)
        student = _student(model, config, replay or online, replay.constants if replay else None, at)
        order = _order(config, data, replay, at)
        if dry_run:
            return _show_plan(config, data, order, replay, student)
        with in_use(config.output) if at.first else nullcontext():
            at.first_does(partial(open_run, config, resume=resume, overwrite=overwrite))
            last, finished = config.output / "last.pt", config.output / "result.json"
            state = load_state(last) if last.exists() else None
            if state is not None and finished.exists():
                console.print(f"{config.output}: finished already")
                return json.loads(finished.read_text())
            if not at.first:
                torch.manual_seed(config.seed + at.rank)  # the same weights on every rank, but not the same dropout
            progress = _run(config, data, val, packs, replay, online, student, order, state, at)
            result = {
                "best": progress.best,
                "steps": progress.step,
                "clips_seen": progress.step * order.group * config.batch_size,
                "failed_clips": int(at.sum(torch.tensor(progress.failed, device=at.device))),
                "gmacs": model_stats(model, config.size).gmacs,
                "seconds": time.perf_counter() - started,
            }
            if at.first:
                write_atomically(finished, (json.dumps(result, indent=2) + "\n").encode())
        return result


def _run(config: TrainConfig, data: Dataset, val: Dataset | None, packs: Packs, replay: Replay | None,
         online: OnlineTeacher | None, student: Student, order: Order, state: dict | None, at: Ranks):  # fmt: skip
    """Wire what the loop takes: batches, targets, validation, weights to disk."""
    make = partial(Clips, size=config.size, via=config.render_via, num_classes=len(data.classes))
    reader = _reader(config, replay.manifest, order, at) if replay else None
    clips = make(data, cache=reader, policy=config.policy, also=[(online.size, None)] if online else (),
                 decode=decode_by(packs.train, config.loader))  # fmt: skip
    teacher = replay or online

    def batches(start: tuple[int, int]):
        return batches_of_run(clips, order, config.schedule.epochs, start, config.loader, at)

    def validate(evaluated: torch.nn.Module) -> dict[str, float]:
        shown = make(val, policy=config.eval_policy, decode=decode_by(packs.val, config.loader))
        ordered = in_order(shown, config.loader, config.batch_size, at)
        return score(evaluated, ordered, len(data.classes), at, autocast(config, at))

    def save_weights(name: str, evaluated: torch.nn.Module, notes: dict) -> None:
        card = ModelCard(config.model, data.classes, config.size, config.render_via, config.eval_policy, notes)
        save_model(config.output / f"{name}.safetensors", evaluated, card)

    if not TRAIN_THE_CLASSIFIER & config.losses.weights().keys():
        student.model.head.requires_grad_(False)
        console.print("[yellow]warning[/] no loss reads the logits: the features are trained, the classifier is not")
    return fit(
        place(student, at.device),
        batches,
        order.steps_per_epoch(),
        config,
        at,
        order=order.digest(),
        state=state,
        meaning=teacher.meaning_on(at.device) if teacher else Meaning(),
        teach=online
        and online.teach(at.device, config.losses, torch.bfloat16 if autocast(config, at) else torch.float32),
        validate=validate if val else None,
        save_weights=save_weights,
    )


def _reader(config: TrainConfig, manifest: Manifest, order: Order, at: Ranks) -> CacheReader:
    """A reader that holds what its worker's streams have open, with a word where that is much of the memory."""
    targets = needed_targets(config.losses)
    workers = max(1, decoding_workers(config.loader))
    blocks = order.resident_blocks(at.world * workers)
    per_rank = workers * blocks * BLOCK * bytes_of_clip_view(manifest.identity, targets)
    available = psutil.virtual_memory().available
    if per_rank > available / 4:
        console.print(
            f"[yellow]warning[/] resident targets: {per_rank / 1e9:.1f} GB ({workers} workers × {blocks} blocks of {BLOCK} "
            f"rows) of {available / 1e9:.1f} GB: lower loader.window ({order.window}) or loader.streams ({order.streams})"
        )
    return CacheReader(config.data.cache, targets, capacity_blocks=blocks)


def evaluation_policy(policy: ViewPolicy) -> ViewPolicy:
    """The deterministic twin of a training policy: middle frames, no flip, and its own crop or the centre's."""
    crop = policy.crop if policy.crop in ("full", "center") else "center"
    return dataclasses.replace(policy, jitter=False, crop=crop, flip=0.0)


def _check_data(config: TrainConfig, data: Dataset, val: Dataset | None) -> None:
    single = config.losses.cross_entropy > 0 and not config.losses.random_label
    labelled = check_labels(data, single=single)["labelled"]
    if labelled == 0 and not needed_targets(config.losses):
        raise ReskdError(f"{data.path} has no labelled clip, and no loss without labels is set: give "
                         f"losses.logit_kl or losses.feature_mse a weight and data.cache")  # fmt: skip
    if val is None:
        return
    if val.classes != data.classes:
        raise ReskdError(f"{val.path} has other classes than {data.path}: prepare both with one class list "
                         f"(prepare --class-order {data.path})")  # fmt: skip
    check_labels(val, single=False)


def _build(config: TrainConfig, data: Dataset, replay: Replay | None) -> tuple[VideoModel, TrainConfig]:
    """The model with its first weights, and the config with all that was left to defaults filled in."""
    classes = config.model.num_classes or len(data.classes)
    if classes != len(data.classes):
        raise ReskdError(f"model.num_classes is {classes}, {data.path} has {len(data.classes)} classes: leave it out")
    policy = config.policy if replay else config.policy or ViewPolicy(num_frames=config.model.num_frames)
    seen = policy or replay.manifest.identity.policy
    filled = {
        "data": config.data.model_copy(update={"views": replay.views if replay else None}),
        "model": config.model.model_copy(update={"num_classes": classes}),
        "policy": policy,
        "eval_policy": config.eval_policy or evaluation_policy(seen),
    }
    config = config.model_copy(update=filled)
    model = build_model(config.model, pretrained=config.init.source == "timm")
    if config.init.source == "checkpoint":
        console.print(initialise(model, config.model, config.init, data.classes), markup=False, soft_wrap=True)
    return model, config


def _student(
    model: VideoModel,
    config: TrainConfig,
    teacher: Replay | OnlineTeacher | None,
    constants: Constants | None,
    at: Ranks,
) -> Student:
    """The model with what its losses need beside it; said, where that is an adapter."""
    student = build_student(model, config.losses, teacher.width if teacher else None, constants)
    if student.adapter is not None and student.adapter.weight.requires_grad and at.first:
        console.print(f"the student's map has {student.adapter.in_features} channels, the targets' "
                      f"{student.adapter.out_features}: a 1×1 adapter between them is trained with the student and "
                      f"left out of its exported weights")  # fmt: skip
    return student


def _shapes(model: VideoModel, config: TrainConfig) -> Output:
    """The student's output for one clip, as shapes alone."""
    stats = model_stats(model, config.size)
    return Output(
        torch.empty(1, config.model.num_classes, device="meta"),
        torch.empty(1, *stats.grid, stats.width, device="meta"),
    )


def _order(config: TrainConfig, data: Dataset, replay: Replay | None, at: Ranks) -> Order:
    order = Order(
        rows=replay.rows if replay else data.usable_rows(),
        names=[entry.name for entry in data.shards],
        seed=config.seed,
        batch_size=config.batch_size,
        group=at.world * config.accumulate,
        window=config.loader.window,
        streams=config.loader.streams,
        views=replay.views if replay and not config.data.mismatch else None,
    )
    order.epoch(0)  # raises where there are fewer clips than one step takes
    return order


def _show_plan(config: TrainConfig, data: Dataset, order: Order, replay: Replay | None, student: Student) -> dict:
    stats, adapter = model_stats(student.model, config.size), student.adapter
    plan = {
        "output": str(config.output),
        "clips": sum(map(len, order.rows)),
        "steps_per_epoch": order.steps_per_epoch(),
        "steps": order.steps_per_epoch() * config.schedule.epochs,
        "stored_views": replay.views if replay else None,
        "losses": config.losses.weights(),
        "parameters": stats.parameters,
        "adapter": None if adapter is None else f"{adapter.in_features} -> {adapter.out_features} channels",
        "gmacs": stats.gmacs,
        "workers": decoding_workers(config.loader),
    }
    for name, value in plan.items():
        console.print(f"{name:16} {value}")
    return plan
