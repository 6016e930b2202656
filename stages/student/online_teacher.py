"""A teacher in the training loop, as upstream has it: it runs in every step, on fresh views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from cache.errors import ReskdError
from stages.distill.check_targets import check_positions
from stages.distill.config import LossConfig
from stages.distill.targets import NO_CLASS_MAP, TargetDecoder, teacher_outputs
from stages.models.checkpoints import load_model
from stages.models.video_model import VideoModel, model_stats, to_device
from stages.shards.classes import check_classes
from stages.shards.dataset import Dataset
from stages.stream.batch import Batch
from stages.student.config import OnlineTeacherConfig


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher in eval mode. (Upstream's teacher is in training mode: its batch statistics and drop path vary.)"""

    model: VideoModel
    size: int  # px
    grid: tuple[int, int, int]  # T', H, W of its map
    width: int  # D, channels of its map

    @property
    def has_class_map(self) -> bool:
        return self.model.head.has_class_map

    def teach(self, device: torch.device, names: Sequence[str], dtype: torch.dtype) -> Callable[[Batch], Batch]:
        """A function that adds the targets of these names to a batch on `device`."""
        model = to_device(self.model, device).eval().requires_grad_(False)

        def add_targets(batch: Batch) -> Batch:
            # Cloned: a backward pass can't use tensors that were made in inference mode.
            clips = batch.other_renderings[self.size, None]
            targets = {name: value.clone() for name, value in teacher_outputs(model, clips, names, dtype).items()}
            return replace(batch, **targets)

        return add_targets

    def decoder(self, device: torch.device) -> TargetDecoder:
        """The decoder of its targets, on `device`. Without a class map it has no classifier, as in a cache."""
        fc = self.model.head.fc
        classifier = (fc.weight.detach().to(device), fc.bias.detach().to(device)) if self.has_class_map else None
        return TargetDecoder((*self.grid[1:], self.width), classifier=classifier)


def check_online(losses: LossConfig, teacher: OnlineTeacher, student_grid: list[int]) -> None:
    """Raise ReskdError if a loss reads what this teacher doesn't give. `student_grid`: [T',h,w] of the student's map."""
    check_positions(losses, list(teacher.grid), student_grid)
    if losses.teacher_reads("class_map") and not teacher.has_class_map:
        raise ReskdError(NO_CLASS_MAP)
    for name, loss in losses.used.items():
        if "channel_std" in loss.teacher:
            raise ReskdError(
                f"losses.{name} needs the deviations of the teacher's channels, and a cache alone has them: set data.cache in "
                f"place of `teacher`, or losses.{name} to 0 and give losses.feature_mse a weight"
            )


def open_teacher(config: OnlineTeacherConfig, data: Dataset, num_frames: int, reads_classes: bool) -> OnlineTeacher:
    """Load the teacher.

    Raises ReskdError if it takes another number of frames than the student, and, if a loss reads its answers
    (`reads_classes`), if it has other classes than the data set or another order of them.
    """
    model, card = load_model(config.checkpoint)
    if reads_classes:
        check_classes(card.classes, data, config.checkpoint)
    if card.model.num_frames != num_frames:
        raise ReskdError(f"teacher {config.checkpoint} takes {card.model.num_frames} frames, the student {num_frames}: "
                         f"set model.num_frames={card.model.num_frames}")  # fmt: skip
    size = config.size or card.size
    stats = model_stats(model, size)
    return OnlineTeacher(model, size, stats.grid, stats.width)
