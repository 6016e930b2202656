"""The weight of a loss: a number, or a curve over the training.

A curve lets a student follow its teacher first and the labels alone in the end: "anneal" in the literature.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from stages.config.schema import Config, Weight


class WeightOverTime(Config):
    """A weight that goes from `start` to `end`, and stays there."""

    start: Weight
    end: Weight
    shape: Literal["cosine", "linear"] = "cosine"
    until: float = Field(1.0, gt=0, le=1, description="the part of the training after which the weight is `end`")

    @model_validator(mode="after")
    def _changes(self) -> WeightOverTime:
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start}: give the number alone")
        return self


def _kind(value: Any) -> str:
    return " " if isinstance(value, (dict, WeightOverTime)) else ""


# The tags are blank: error messages leave them out of a key's path.
LossWeight = Annotated[
    Annotated[Weight, Tag("")] | Annotated[WeightOverTime, Tag(" ")],
    Discriminator(_kind, custom_error_type="weight", custom_error_message="must be a number or {start, end}"),
]


def weight_at(weight: float | WeightOverTime, part: float) -> float:
    """The weight after a part of the training, from 0 to 1.

    start * l + end * (1 - l), with l = (1 + cos(pi * p)) / 2 (cosine) or 1 - p (linear), and p = min(1, part / until).
    """
    if not isinstance(weight, WeightOverTime):
        return weight
    p = min(1.0, part / weight.until)
    left = (1 + math.cos(math.pi * p)) / 2 if weight.shape == "cosine" else 1 - p
    return weight.start * left + weight.end * (1 - left)


def is_used(weight: float | WeightOverTime) -> bool:
    """Whether the weight is above 0 at any time."""
    return max(weight.start, weight.end) > 0 if isinstance(weight, WeightOverTime) else weight > 0
