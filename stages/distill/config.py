"""The config of the losses, made from the table `LOSSES`: a weight for each loss, and the options of all."""

from __future__ import annotations

from pydantic import create_model, model_validator

from stages.config.schema import Config, Weight
from stages.distill.losses import LOSSES, Loss


class _Losses(Config):
    """A weighted sum of losses. A weight of 0 leaves a loss out."""

    @property
    def used(self) -> dict[str, Loss]:
        """The losses that are in the sum, by name, in the order of `LOSSES`."""
        return {name: loss for name, loss in LOSSES.items() if getattr(self, name) > 0}

    def weights(self) -> dict[str, float]:
        """name -> weight of every loss that is in the sum."""
        return {name: getattr(self, name) for name in self.used}

    @property
    def with_teacher(self) -> list[str]:
        """The losses in the sum that need a teacher's targets."""
        return [name for name, loss in self.used.items() if loss.teacher]

    def student_reads(self, field: str) -> bool:
        """Whether a loss in the sum reads this field of the student's output: "logits", "features", "class_map"."""
        return any(field in loss.student for loss in self.used.values())

    def teacher_reads(self, field: str) -> bool:
        """Whether a loss in the sum reads this field of the teacher's targets: "logits", "features", "class_map"."""
        return any(field in loss.teacher for loss in self.used.values())

    @property
    def stored_targets(self) -> tuple[str, ...]:
        """Names of the cache's targets that the losses in the sum read. Class maps are computed from the features."""
        maps = self.teacher_reads("features") or self.teacher_reads("class_map")
        return (*(["features"] if maps else []), *(["logits"] if self.teacher_reads("logits") else []))

    @property
    def takes_one_label(self) -> bool:
        """Whether a clip with several labels is an error."""
        return "cross_entropy" in self.used and not self.random_label

    @model_validator(mode="after")
    def _has_a_loss(self) -> _Losses:
        if not self.used:
            raise ValueError("every weight is 0: give at least one loss a weight")
        return self


WEIGHTS = {name: (Weight, loss.weight) for name, loss in LOSSES.items()}
OPTIONS = {name: option for loss in reversed(LOSSES.values()) for name, option in loss.options.items()}
LossConfig = create_model("LossConfig", __base__=_Losses, **WEIGHTS, **OPTIONS)
