"""What every config is made of: a frozen model that knows its keys, and the types that its numbers have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cache.view import ViewPolicy

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Size = Annotated[int, Field(ge=8, le=1024)]  # pixels


class Config(BaseModel):
    """Each stage's own config is in the stage's folder. An unknown key is an error. Rules across keys are checked here
    too, so that a run never fails after an hour for what its config already said."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def check_deterministic(name: str, policy: ViewPolicy | None) -> None:
    if policy and (policy.jitter or policy.flip or policy.crop not in ("center", "three_crop", "full")):
        raise ValueError(f"{name} must be deterministic: jitter: false, flip: 0, crop: center, three_crop or full")


def formerly(**names: str) -> BeforeValidator:
    """Reads an old value of a key as its new one: `Annotated[Literal["new"], formerly(old="new")]`.

    Old configs, checkpoints, runs and caches are read by it, and compared by the new names.
    """
    return BeforeValidator(lambda value: names.get(value, value) if isinstance(value, str) else value)
