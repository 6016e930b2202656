"""Stage two: a student on low-resolution views, joined with the cached targets. Without a cache, plain training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import psutil
import torch

from cache.errors import ReskdError
from cache.manifest import Manifest, bytes_of_clip_view
from cache.reader import CacheReader
from cache.store import write_atomically
from cache.view import BLOCK
from stages.config.schema import TrainConfig
from stages.distill.targets import Meaning, needed_targets
from stages.metrics.scoring import Net, score_each
from stages.models import model_stats, place
from stages.models.checkpoints import ModelCard, save_model
from stages.runtime.distributed import Ranks, ranks
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.stream.clips import Clips, check_labels
from stages.stream.frame_source import Packs, check_packs, frames_by, open_data
from stages.stream.loading import decoding_workers, in_order
from stages.stream.order import Order, batches_of_run
from stages.stream.replay import Replay, open_replay
from stages.student.cohort import check_shared, order_seed, with_stored_views
from stages.student.loop import fit
from stages.student.online_teacher import OnlineTeacher, open_teacher
from stages.student.run import Progress, start_run
from stages.student.run_folder import check_run, in_use, load_state, open_run
from stages.student.setup import Member, build_member


def train_student(config: TrainConfig, **options: Any) -> dict:
    """Train a student (or, without `data.cache`, a teacher or a baseline) and write its run folder `config.output`.

    The folder: config.yaml (resolved), metrics.jsonl, tensorboard/, last.pt (for --resume), last.safetensors and
    best.safetensors (of the best validation: by mAP where clips have several labels, else by
    top-1), result.json, which is returned. `options`: see `train_cohort`.
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
    """Train several students on one stream of clips, decoded, joined and validated on once; returns their results.

    Each is what it would be alone (up to floating point), in a folder of its own. They differ in what they like but
    for SHARED. `resume`: those that are finished are left alone, those that are further than others wait for the stream.
    `allow_partial`: train on an unfinished cache's finished shards, saying what is left out. `go_on`: what to do after an
    interruption, for its message.
    Raises ReskdError where they can't share a stream, and once the others are at their ends, for those that failed;
    Interrupted where a signal asked to stop, be it at the last step.
    """
    started = time.perf_counter()
    check_shared(configs)
    with ranks() as at, ExitStack() as held:
        configs = with_stored_views(configs) if resume else dict(configs)
        shared = next(iter(configs.values()))
        data, val, packs = open_data(shared)
        targets = tuple(sorted({target for c in configs.values() for target in needed_targets(c.losses)}))
        _check_data(list(configs.values()), data, val)
        replay = open_replay(shared.data, targets, data, allow_partial) if shared.data.cache else None
        online = open_teacher(shared.teacher, data, shared.model.num_frames) if shared.teacher else None
        members = {name: build_member(config, data, replay, online, at) for name, config in configs.items()}
        for member in members.values():
            check_packs(member.config, packs, replay)
        order = _order(shared, data, replay, at)
        check = partial(check_run, resume=resume, overwrite=overwrite)
        if dry_run:
            for member in members.values() if resume else ():
                check(member.config)
            return {name: _show_plan(member, data, order, replay) for name, member in members.items()}
        for member in members.values():
            if at.first:
                held.enter_context(in_use(member.config.output))
        for member in members.values():  # all of them, before any is touched
            at.first_does(partial(check, member.config))
        for member in members.values():
            at.first_does(partial(open_run, member.config, resume=resume, overwrite=overwrite))
        results = {}
        for name, member in list(members.items()):
            if (result := _finished(member.config)) is not None:
                console.print(f"{member.config.output}: finished already")
                results[name] = result
                del members[name]
        if members:
            results |= _train(members, data, val, packs, targets, replay, online, order, at, started, go_on)
        return {name: results[name] for name in configs}


def _train(members: Mapping[str, Member], data: Dataset, val: Dataset | None, packs: Packs, targets: Sequence[str],
           replay: Replay | None, online: OnlineTeacher | None, order: Order, at: Ranks, started: float,
           go_on: str) -> dict[str, dict]:  # fmt: skip
    """Wire what the loop takes: batches, targets, validation, weights and results to disk."""
    shared, results = next(iter(members.values())).config, {}
    first, *others = dict.fromkeys((member.config.size, member.config.render_via) for member in members.values())
    make = partial(Clips, size=first[0], via=first[1], num_classes=len(data.classes))
    reader = _reader(shared, replay.manifest, targets, order, at) if replay else None
    clips = make(data, cache=reader, policy=shared.policy, also=[*others, *([(online.size, None)] if online else [])],
                 **frames_by(packs.train, shared.loader))  # fmt: skip
    teacher = replay or online
    meaning = teacher.meaning_on(at.device) if teacher else Meaning()

    def batches(start: tuple[int, int]):
        epochs = max(member.config.schedule.epochs for member in members.values())
        return batches_of_run(clips, order, epochs, start, shared.loader, at)

    def validate(nets: Sequence[Net]) -> list[dict | Exception]:
        seen = make(val, policy=shared.eval_policy, also=others, **frames_by(packs.val, shared.loader))
        return score_each(nets, in_order(seen, shared.loader, shared.batch_size, at), len(data.classes), at)

    def save_weights(config: TrainConfig, name: str, evaluated: torch.nn.Module, notes: dict) -> None:
        card = ModelCard(config.model, data.classes, config.size, config.render_via, config.eval_policy, notes)
        save_model(config.output / f"{name}.safetensors", evaluated, card)

    def ended(name: str, progress: Progress, failed_clips: int) -> None:
        config = members[name].config
        results[name] = {
            "best": progress.best,
            "steps": progress.step,
            "clips_seen": progress.step * order.group * config.batch_size,
            "failed_clips": failed_clips,
            "gmacs": members[name].gmacs,
            "seconds": time.perf_counter() - started,
        }
        if at.first:
            write_atomically(config.output / "result.json", (json.dumps(results[name], indent=2) + "\n").encode())

    runs = []
    for name, member in members.items():
        config, last = member.config, member.config.output / "last.pt"
        rendering = (config.size, config.render_via)
        run = start_run(
            config,
            at,
            place(member.student, at.device),
            load_state(last) if last.exists() else None,
            order=order.digest(),
            steps_per_epoch=order.steps_per_epoch(),
            random=member.random,
            rendering=None if rendering == first else rendering,
            meaning=meaning,
            save_weights=partial(save_weights, config),
            ended=partial(ended, name),
        )
        runs.append(run)
    read = {name for member in members.values() for name in needed_targets(member.config.losses)}
    dtype = torch.bfloat16 if any(run.amp for run in runs) else torch.float32
    teach = online.teach(at.device, sorted(read), dtype) if online else None
    fit(runs, batches, order.steps_per_epoch(), teach=teach, validate=validate if val else None, go_on=go_on)
    return results


def _finished(config: TrainConfig) -> dict | None:
    """The result of a run that is at its end."""
    last, finished = config.output / "last.pt", config.output / "result.json"
    return json.loads(finished.read_text()) if last.exists() and finished.exists() else None


def _reader(config: TrainConfig, manifest: Manifest, targets: Sequence[str], order: Order, at: Ranks) -> CacheReader:
    """A reader that holds what its worker's streams have open, with a word where that is much of the memory."""
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


def _check_data(configs: Sequence[TrainConfig], data: Dataset, val: Dataset | None) -> None:
    single = any(config.losses.cross_entropy > 0 and not config.losses.random_label for config in configs)
    labelled = check_labels(data, single=single)["labelled"]
    if labelled == 0 and not all(needed_targets(config.losses) for config in configs):
        raise ReskdError(f"{data.path} has no labelled clip, and no loss without labels is set: give "
                         f"losses.logit_kl or losses.feature_mse a weight and data.cache")  # fmt: skip
    if val is None:
        return
    if val.classes != data.classes:
        raise ReskdError(f"{val.path} has other classes than {data.path}: prepare both with one class list "
                         f"(prepare --class-order {data.path})")  # fmt: skip
    check_labels(val, single=False)


def _order(config: TrainConfig, data: Dataset, replay: Replay | None, at: Ranks) -> Order:
    order = Order(
        rows=replay.rows if replay else data.usable_rows(),
        names=[entry.name for entry in data.shards],
        seed=order_seed(config),
        batch_size=config.batch_size,
        group=at.world * config.accumulate,
        window=config.loader.window,
        streams=config.loader.streams,
        views=replay.views if replay and not config.data.mismatch else None,
    )
    order.epoch(0)  # raises where there are fewer clips than one step takes
    return order


def _show_plan(member: Member, data: Dataset, order: Order, replay: Replay | None) -> dict:
    config, adapter = member.config, member.student.adapter
    plan = {
        "output": str(config.output),
        "clips": sum(map(len, order.rows)),
        "steps_per_epoch": order.steps_per_epoch(),
        "steps": order.steps_per_epoch() * config.schedule.epochs,
        "stored_views": replay.views if replay else None,
        "losses": config.losses.weights(),
        "parameters": model_stats(member.student.model, config.size).parameters,
        "adapter": None if adapter is None else f"{adapter.in_features} -> {adapter.out_features} channels",
        "gmacs": member.gmacs,
        "workers": decoding_workers(config.loader),
    }
    for name, value in plan.items():
        console.print(f"{name:16} {value}")
    return plan
