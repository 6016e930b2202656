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
from stages.distill.targets import TargetDecoder, target_decoder
from stages.metrics.scoring import Net, score_each
from stages.models.checkpoints import ModelCard, save_model
from stages.models.video_model import model_stats, to_device
from stages.runtime.distributed import Ranks, join_ranks
from stages.runtime.lock import locked
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.shards.labels import check_labels
from stages.stream.clips import Clips
from stages.stream.frame_source import frames_by
from stages.stream.loading import decoding_workers, in_order
from stages.stream.order import Order, batches_of_run
from stages.stream.replay import Replay, open_replay
from stages.student.cohort import check_shared, order_seed, with_stored_views
from stages.student.config import TrainConfig
from stages.student.data import Packs, check_packs, open_data
from stages.student.loop import fit
from stages.student.online_teacher import OnlineTeacher, open_teacher
from stages.student.run import Progress, start_run
from stages.student.run_folder import check_run, open_run
from stages.student.setup import StudentSetup, set_up_student
from stages.student.state import load_state


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
    with join_ranks() as ranks, ExitStack() as held:
        configs = with_stored_views(configs) if resume else dict(configs)
        shared = next(iter(configs.values()))
        data, val, packs = open_data(shared)
        targets = tuple(sorted({target for c in configs.values() for target in c.losses.stored_targets}))
        _check_data(list(configs.values()), data, val)
        replay = None
        if shared.data.cache:
            replay = open_replay(shared.data.cache, shared.data.views, targets, data, allow_partial)
        online = open_teacher(shared.teacher, data, shared.model.num_frames) if shared.teacher else None
        setups = {name: set_up_student(config, data, replay, online, ranks) for name, config in configs.items()}
        for setup in setups.values():
            check_packs(setup.config, packs, replay)
        order = _order(shared, data, replay, ranks)
        check = partial(check_run, resume=resume, overwrite=overwrite)
        if dry_run:
            for setup in setups.values() if resume else ():
                check(setup.config)
            return {name: _show_plan(setup, data, order, replay) for name, setup in setups.items()}
        for setup in setups.values():
            if ranks.first:
                held.enter_context(locked(setup.config.output))
        for setup in setups.values():  # all of them, before any is touched
            ranks.run_on_first(partial(check, setup.config))
        for setup in setups.values():
            ranks.run_on_first(partial(open_run, setup.config, resume=resume, overwrite=overwrite))
        results = {}
        for name, setup in list(setups.items()):
            if (result := _finished(setup.config)) is not None:
                console.print(f"{setup.config.output}: finished already")
                results[name] = result
                del setups[name]
        if setups:
            results |= _train(setups, data, val, packs, targets, replay, online, order, ranks, started, go_on)
        return {name: results[name] for name in configs}


def _train(setups: Mapping[str, StudentSetup], data: Dataset, val: Dataset | None, packs: Packs, targets: Sequence[str],
           replay: Replay | None, online: OnlineTeacher | None, order: Order, ranks: Ranks, started: float,
           go_on: str) -> dict[str, dict]:  # fmt: skip
    """Wire what the loop takes: batches, targets, validation, weights and results to disk."""
    shared, results = next(iter(setups.values())).config, {}
    first, *others = dict.fromkeys((setup.config.size, setup.config.render_via) for setup in setups.values())
    make = partial(Clips, size=first[0], render_via=first[1], num_classes=len(data.classes))
    reader = _reader(shared, replay.manifest, targets, order, ranks) if replay else None
    clips = make(data, cache=reader, policy=shared.policy, other_renderings=[*others, *([(online.size, None)] if online else [])],
                 **frames_by(packs.train, shared.loader))  # fmt: skip
    if replay:
        decoder = target_decoder(replay.manifest, replay.constants, ranks.device)
    else:
        decoder = online.decoder(ranks.device) if online else TargetDecoder()

    def batches(start: tuple[int, int]):
        epochs = max(setup.config.schedule.epochs for setup in setups.values())
        return batches_of_run(clips, order, epochs, start, shared.loader, ranks)

    def validate(nets: Sequence[Net]) -> list[dict | Exception]:
        seen = make(val, policy=shared.eval_policy, other_renderings=others, **frames_by(packs.val, shared.loader))
        return score_each(nets, in_order(seen, shared.loader, shared.batch_size, ranks), len(data.classes), ranks)

    def save_weights(config: TrainConfig, name: str, evaluated: torch.nn.Module, notes: dict) -> None:
        card = ModelCard(config.model, data.classes, config.size, config.render_via, config.eval_policy, notes)
        save_model(config.output / f"{name}.safetensors", evaluated, card)

    def ended(name: str, progress: Progress, failed_clips: int) -> None:
        config = setups[name].config
        results[name] = {
            "best": progress.best,
            "steps": progress.step,
            "clips_seen": progress.step * order.group * config.batch_size,
            "failed_clips": failed_clips,
            "gmacs": setups[name].gmacs,
            "seconds": time.perf_counter() - started,
        }
        if ranks.first:
            write_atomically(config.output / "result.json", (json.dumps(results[name], indent=2) + "\n").encode())

    runs = []
    for name, setup in setups.items():
        config, last = setup.config, setup.config.output / "last.pt"
        rendering = (config.size, config.render_via)
        run = start_run(
            config,
            ranks,
            to_device(setup.student, ranks.device),
            load_state(last) if last.exists() else None,
            order=order.digest(),
            steps_per_epoch=order.steps_per_epoch(),
            random=setup.random,
            rendering=None if rendering == first else rendering,
            decoder=decoder,
            save_weights=partial(save_weights, config),
            ended=partial(ended, name),
        )
        runs.append(run)
    read = {name for setup in setups.values() for name in setup.config.losses.stored_targets}
    dtype = torch.bfloat16 if any(run.amp for run in runs) else torch.float32
    teach = online.teach(ranks.device, sorted(read), dtype) if online else None
    fit(runs, batches, order.steps_per_epoch(), teach=teach, validate=validate if val else None, go_on=go_on)
    return results


def _finished(config: TrainConfig) -> dict | None:
    """The result of a run that is at its end."""
    last, finished = config.output / "last.pt", config.output / "result.json"
    return json.loads(finished.read_text()) if last.exists() and finished.exists() else None


def _reader(config: TrainConfig, manifest: Manifest, targets: Sequence[str], order: Order, ranks: Ranks) -> CacheReader:
    """A reader that holds what its worker's streams have open, with a word where that is much of the memory."""
    workers = max(1, decoding_workers(config.loader))
    blocks = order.resident_blocks(ranks.world * workers)
    per_rank = workers * blocks * BLOCK * bytes_of_clip_view(manifest.identity, targets)
    available = psutil.virtual_memory().available
    if per_rank > available / 4:
        console.print(
            f"[yellow]warning[/] resident targets: {per_rank / 1e9:.1f} GB ({workers} workers × {blocks} blocks of {BLOCK} "
            f"rows) of {available / 1e9:.1f} GB: lower loader.window ({order.window}) or loader.streams ({order.streams})"
        )
    return CacheReader(config.data.cache, targets, capacity_blocks=blocks)


def _check_data(configs: Sequence[TrainConfig], data: Dataset, val: Dataset | None) -> None:
    single = any(config.losses.takes_one_label for config in configs)
    labelled = check_labels(data, single=single)["labelled"]
    if labelled == 0 and not all(config.losses.stored_targets for config in configs):
        raise ReskdError(f"{data.path} has no labelled clip, and no loss without labels is set: give "
                         f"losses.logit_kl or losses.feature_mse a weight and data.cache")  # fmt: skip
    if val is None:
        return
    if val.classes != data.classes:
        raise ReskdError(f"{val.path} has other classes than {data.path}: prepare both with one class list "
                         f"(prepare --class-order {data.path})")  # fmt: skip
    check_labels(val, single=False)


def _order(config: TrainConfig, data: Dataset, replay: Replay | None, ranks: Ranks) -> Order:
    order = Order(
        rows=replay.rows if replay else data.usable_rows(),
        names=[entry.name for entry in data.shards],
        seed=order_seed(config),
        batch_size=config.batch_size,
        group=ranks.world * config.accumulate,
        window=config.loader.window,
        streams=config.loader.streams,
        views=replay.views if replay and not config.data.mismatch else None,
    )
    order.epoch(0)  # raises where there are fewer clips than one step takes
    return order


def _show_plan(setup: StudentSetup, data: Dataset, order: Order, replay: Replay | None) -> dict:
    config, adapter = setup.config, setup.student.adapter
    plan = {
        "output": str(config.output),
        "clips": sum(map(len, order.rows)),
        "steps_per_epoch": order.steps_per_epoch(),
        "steps": order.steps_per_epoch() * config.schedule.epochs,
        "stored_views": replay.views if replay else None,
        "losses": config.losses.weights(),
        "parameters": model_stats(setup.student.model, config.size).parameters,
        "adapter": None if adapter is None else f"{adapter.in_features} -> {adapter.out_features} channels",
        "gmacs": setup.gmacs,
        "workers": decoding_workers(config.loader),
    }
    for name, value in plan.items():
        console.print(f"{name:16} {value}")
    return plan
