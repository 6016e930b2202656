"""The clips on which an exported file is checked: of a data set, in the views of evaluation, or noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat, takewhile

import torch
from torch import Tensor

from cache.differences import first_difference
from cache.errors import ReskdError
from stages.models.checkpoints import ModelCard
from stages.remote.url_path import Location
from stages.runtime.terminal import console
from stages.shards.dataset import open_dataset
from stages.shards.labels import check_labels
from stages.stream.batch import Batch
from stages.stream.clips import ClipDataset, Index
from stages.stream.config import LoaderConfig
from stages.stream.frame_source import open_frames
from stages.stream.loading import decoding_workers, raise_errors
from stages.stream.worker_pool import make_batches

SIZES = (1, 2, 3, 4)  # of the first batches; those behind have 4
MAX_SCORED = 1000  # clips: on 128, one point of accuracy would be one clip


def noise_batches(card: ModelCard) -> Iterator[Tensor]:
    """Ten clips of noise, always the same, in batches of 1, 2, 3 and 4: uint8 [n,T,3,S,S]."""
    generator = torch.Generator().manual_seed(0)
    for number in SIZES:
        shape = (number, card.model.num_frames, 3, card.size, card.size)
        yield torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


class EvaluationClips:
    """The clips of a data set, in a checkpoint's views of evaluation.

    Raises ReskdError if no clip is usable. `labelled`: also if the classes aren't the checkpoint's, or no clip has a label.
    """

    def __init__(self, path: Location, card: ModelCard, checkpoint: Location, loader: LoaderConfig, *, labelled: bool):
        self.data, _ = open_frames(open_dataset(path), None)
        self.views, self.loader = card.eval_policy.views, loader
        self.rows = [(s, int(r)) for s, usable in enumerate(self.data.usable_rows()) for r in usable]
        if not self.rows:
            raise ReskdError(f"{path} has no usable clip: give another data set")
        if labelled:
            self._check_labels(card, checkpoint)
        self.clips = ClipDataset(self.data, size=card.size, render_via=card.render_via, policy=card.eval_policy,
                                 num_classes=len(self.data.classes))  # fmt: skip

    def _check_labels(self, card: ModelCard, checkpoint: Location) -> None:
        if card.classes != tuple(self.data.classes):
            difference = first_difference(card.classes, self.data.classes, ("in the checkpoint", "in the data set"))
            raise ReskdError(f"{checkpoint} knows other classes than {self.data.path} has ({difference}): prepare the data "
                             f"set in the checkpoint's order (prepare --class-order {checkpoint})")  # fmt: skip
        if not check_labels(self.data, single=False)["labelled"]:
            raise ReskdError(f"all clips of {self.data.path} are unlabelled, and labels show what int8 costs: give a "
                             "labelled data set")  # fmt: skip

    def some(self, number: int) -> Iterator[Tensor]:
        """One view of each of up to `number` clips, spread evenly over the data set, in batches of 1, 2, 3, 4, 4, ... clips.

        uint8 [n,T,3,S,S]. View after view of the policy takes its turn. Clips that can't be decoded are printed and left out.
        """
        rows = spread(self.rows, number)
        indices = iter([(s, r, i % self.views) for i, (s, r) in enumerate(rows)])
        sizes = chain(SIZES, repeat(SIZES[-1]))
        for batch in self._make(list(takewhile(bool, (list(islice(indices, size)) for size in sizes)))):
            if len(clips := batch.clips[batch.usable]):
                yield clips

    def scored(self) -> Iterator[Batch]:
        """All views of up to MAX_SCORED clips, spread evenly over the data set; of each clip in one batch."""
        rows = spread(self.rows, MAX_SCORED)
        step = max(1, SIZES[-1] // self.views)
        groups = [rows[i : i + step] for i in range(0, len(rows), step)]
        return self._make([[(s, r, v) for s, r in group for v in range(self.views)] for group in groups])

    def _make(self, groups: Sequence[Sequence[Index]]) -> Iterator[Batch]:
        workers = min(decoding_workers(self.loader), len(groups))
        for batch in raise_errors(make_batches(self.clips.fetcher, groups, workers, self.loader, data=self.data)):
            for line in batch.failures:
                console.print(f"[yellow]failed[/] {line}", highlight=False)
            yield batch


def spread(rows: Sequence[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """Up to `number` of the rows: the middle one of each of `number` equal parts."""
    number = min(number, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * number)] for i in range(number)]
