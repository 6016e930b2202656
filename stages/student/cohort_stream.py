"""The one stream of clips that all students of a cohort train on, and the one that they are validated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cache.reader import CacheReader
from cache.view import BLOCK
from stages.distill.targets import TargetDecoder, target_decoder
from stages.metrics.scoring import ScoredModel, score_models
from stages.runtime.distributed import Ranks, ranks_of_machine
from stages.runtime.memory import available_memory
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.batch import Batch
from stages.stream.clips import ClipDataset
from stages.stream.frame_source import frame_options
from stages.stream.loading import batches_in_order
from stages.stream.local_folder import budget_of, check_budget, in_store, shares
from stages.stream.order import Order, batches_of_run, workers_of_run
from stages.stream.replay import Replay, open_replay
from stages.student.cohort import order_seed
from stages.student.config import TrainConfig
from stages.student.data import TrainingData, check_classes_and_labels, check_packs, open_data
from stages.student.new_student import NewStudent, new_student
from stages.student.online_teacher import OnlineTeacher, open_teacher
from stages.video.render import Rendering


@dataclass(frozen=True)
class CohortStream:
    """What all students of a cohort share: the data, the teacher's targets, and the order of the clips."""

    config: TrainConfig  # of one student, with the defaults filled in; only the keys of cohort.SHARED are read
    data: TrainingData
    replay: Replay | None  # the part of the cache that is replayed, if there is a cache
    online: OnlineTeacher | None  # the teacher in the loop, if there is one
    targets: tuple[str, ...]  # names of the stored targets that any student's losses read
    order: Order
    ranks: Ranks


def prepare_cohort(
    configs: Mapping[str, TrainConfig], allow_partial: bool, ranks: Ranks
) -> tuple[CohortStream, dict[str, NewStudent]]:
    """Open the data and the targets, and build the students. Nothing is written.

    Raises ReskdError if the data, the targets, the packs or the number of clips don't fit a student.
    """
    shared = next(iter(configs.values()))
    data = open_data(shared)
    targets = tuple(sorted({target for config in configs.values() for target in config.losses.stored_targets}))
    check_classes_and_labels(list(configs.values()), data)
    replay = online = None
    if shared.data.cache:
        replay = open_replay(shared.data.cache, shared.data.views, targets, data.train, allow_partial)
    if shared.teacher:
        reads_classes = any(config.losses.reads_classes for config in configs.values())
        online = open_teacher(shared.teacher, data.train, shared.model.num_frames, reads_classes)
    students = {name: new_student(config, data.train, replay, online, ranks) for name, config in configs.items()}
    for student in students.values():
        check_packs(student.config, data, replay)
    order = _clip_order(shared, data.train, replay, ranks)
    if in_store(data.train) and data.train_pack is None:
        check_budget(data.train, order.open_streams, order.window, _budgets(shared, data)[0], ranks)
    with_defaults = next(iter(students.values())).config
    return CohortStream(with_defaults, data, replay, online, targets, order, ranks), students


def _clip_order(config: TrainConfig, data: Dataset, replay: Replay | None, ranks: Ranks) -> Order:
    order = Order(
        rows=replay.rows if replay else data.usable_rows(),
        names=[entry.name for entry in data.shards],
        seed=order_seed(config),
        batch_size=config.batch_size,
        group=ranks.world * config.accumulate,
        window=config.loader.window,
        streams=config.loader.streams,
        views=replay.views if replay else None,
    )
    order.epoch(0)  # raises if there are fewer clips than one step takes
    return order


def decoder_of(stream: CohortStream) -> TargetDecoder:
    """The decoder of the stream's targets, on the ranks' device."""
    if stream.replay:
        return target_decoder(stream.replay.manifest, stream.replay.constants, stream.ranks.device)
    return stream.online.decoder(stream.ranks.device) if stream.online else TargetDecoder()


def training_batches(
    stream: CohortStream, renderings: Sequence[Rendering], epochs: int
) -> Callable[[tuple[int, int]], Iterable[Batch]]:
    """A function that gives this rank's micro-batches from (epoch, step in it) to the end of `epochs`.

    `renderings`: the (size, render_via) of the students. The first gives the `clips` of a batch, the others its
    `other_renderings`, and so does the size of a teacher in the loop.
    """
    config, data = stream.config, stream.data
    (size, render_via), *others = renderings
    if stream.online:
        others.append((stream.online.size, None))
    clips = ClipDataset(
        data.train,
        size=size,
        render_via=render_via,
        num_classes=len(data.train.classes),
        cache=_cache_reader(stream) if stream.replay else None,
        policy=config.policy,
        other_renderings=others,
        **frame_options(data.train_pack, config.loader),
    )
    budget = _budgets(config, data)[0]
    return lambda start: batches_of_run(clips, stream.order, epochs, start, config.loader, stream.ranks, budget)


def validation(
    stream: CohortStream, renderings: Sequence[Rendering]
) -> Callable[[Sequence[ScoredModel]], list[dict | Exception]] | None:
    """A function that scores nets on the validation clips, decoded once for all. None without validation clips."""
    config, data = stream.config, stream.data
    if data.val is None:
        return None
    (size, render_via), *others = renderings
    budget = _budgets(config, data)[1]

    def validate(nets: Sequence[ScoredModel]) -> list[dict | Exception]:
        clips = ClipDataset(
            data.val,
            size=size,
            render_via=render_via,
            num_classes=len(data.train.classes),
            policy=config.eval_policy,
            other_renderings=others,
            **frame_options(data.val_pack, config.loader),
        )
        batches = batches_in_order(clips, config.loader, config.batch_size, stream.ranks, budget)
        return score_models(nets, batches, len(data.train.classes), stream.ranks)

    return validate


def _budgets(config: TrainConfig, data: TrainingData) -> tuple[int | None, int | None]:
    """Bytes of `loader.local` for the videos of training and of validation; None where they aren't read from a store."""
    train = data.train if in_store(data.train) and data.train_pack is None else None
    val = data.val if data.val and in_store(data.val) and data.val_pack is None else None
    return shares(budget_of(config.loader.local), train, val) if train or val else (None, None)


def teacher_in_the_loop(
    stream: CohortStream, targets: Iterable[str], dtype: torch.dtype
) -> Callable[[Batch], Batch] | None:
    """A function that adds these targets to a batch on the device. None without a teacher in the loop."""
    return stream.online.teach(stream.ranks.device, sorted(targets), dtype) if stream.online else None


def _cache_reader(stream: CohortStream) -> CacheReader:
    """A reader that keeps in memory all blocks that its worker reads from at once.

    Prints what all ranks of this machine keep, if that is much of its memory, and the streams that would need less.
    """
    config, order, world = stream.config, stream.order, stream.ranks.world
    workers = max(1, workers_of_run(order, config.loader, world))
    blocks = order.resident_blocks(world * workers)
    reader = CacheReader(config.data.cache, stream.targets, capacity_blocks=blocks)
    ranks, available = ranks_of_machine(), available_memory()
    needed = ranks * workers * reader.most_bytes()
    if needed > available / 4:
        fitting = world * workers * max(1, order.open_streams // (world * workers))  # each process has whole streams
        less = (
            f", or set loader.streams={fitting} (it changes the order)"
            if order.open_streams % (world * workers)
            else ""
        )
        console.print(
            f"[yellow]warning[/] resident targets: {needed / 1e9:.1f} GB ({ranks} ranks × {workers} workers × {blocks} blocks "
            f"of {BLOCK} rows) of {available / 1e9:.1f} GB: lower loader.window ({order.window}) or loader.streams "
            f"({order.streams}){less}"
        )
    return reader
