"""The config of the losses, made from the table `LOSSES`: a weight for each loss, and the options of all."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, create_model, model_validator

from stages.config.schema import Config
from stages.distill.losses import LOSSES, Loss
from stages.distill.weights import LossWeight, is_used, weight_at


class _Losses(Config):
    """A weighted sum of losses. A weight is a number, or {start, end} over the training. A weight of 0 leaves a loss out."""

    projector: Literal["auto", "none", "linear", "ensemble"] = Field(
        "auto", description="a trained map from the student's channels to the targets', for losses that compare channels; "
        "dropped after training. auto: a linear one if their numbers differ; none: refused if they differ; linear: always; "
        "ensemble: the mean of three, each with a ReLU")  # fmt: skip

    @property
    def used(self) -> dict[str, Loss]:
        """The losses that are in the sum, by name, in the order of `LOSSES`."""
        return {name: loss for name, loss in LOSSES.items() if is_used(getattr(self, name))}

    def weights(self, part: float = 0.0) -> dict[str, float]:
        """name -> weight of every loss that is in the sum, after this part of the training (0 to 1)."""
        return {name: weight_at(getattr(self, name), part) for name in self.used}

    @property
    def with_teacher(self) -> list[str]:
        """The losses in the sum that need a teacher's targets."""
        return [name for name, loss in self.used.items() if loss.teacher]

    def student_reads(self, field: str) -> bool:
        """Whether a loss in the sum reads this field of `StudentOutput`."""
        return any(field in loss.student for loss in self.used.values())

    def teacher_reads(self, field: str) -> bool:
        """Whether a loss in the sum reads this field of the teacher's `Targets`."""
        return any(field in loss.teacher for loss in self.used.values())

    @property
    def reads_classes(self) -> bool:
        """Whether a loss in the sum compares classes with the teacher's: then both must have one class list."""
        return self.teacher_reads("logits") or self.teacher_reads("class_map")

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
    def _fits(self) -> _Losses:
        if not self.used:
            raise ValueError("every weight is 0: give at least one loss a weight")
        if self.projector in ("linear", "ensemble") and not self.student_reads("features"):
            readers = [name for name, loss in LOSSES.items() if "features" in loss.student]
            raise ValueError(f"projector: {self.projector}, and no loss reads projected features: give one of "
                             f"{', '.join(readers)} a weight, or leave `projector` out")  # fmt: skip
        return self


WEIGHTS = {name: (LossWeight, loss.weight) for name, loss in LOSSES.items()}
OPTIONS = {name: option for loss in reversed(LOSSES.values()) for name, option in loss.options.items()}
LossConfig = create_model("LossConfig", __base__=_Losses, **WEIGHTS, **OPTIONS)
