"""The base class of all configs, and types for their numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from cache.view import ViewPolicy
from stages.remote.probe import check_not_on_web_server
from stages.remote.url_path import Location, UrlPath, location

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
# A path of this machine, or a URL of a store. A key whose type is Path takes no URL: see `Config`.
AnyPath = Annotated[
    Path | UrlPath,
    BeforeValidator(lambda v: location(v) if isinstance(v, str) else v),
    PlainSerializer(str, return_type=str),
]
Size = Annotated[int, Field(ge=8, le=1024)]  # pixels


def _no_web_server(output: Location) -> Location:
    check_not_on_web_server(output)
    return output


OutputPath = Annotated[AnyPath, AfterValidator(_no_web_server)]  # where something is written


class Config(BaseModel):
    """The base class: frozen, and an unknown key is an error. The configs are in the folders of their stages.

    Configs check rules across keys too, so that no run fails after an hour because of its config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    # Keys that are gone, with the only value that older configs may have: what is done always now. Another is an error.
    removed: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if k not in cls.removed or v != cls.removed[k]}

    @field_validator("*")
    @classmethod
    def _no_url_as_a_local_path(cls, value: Any) -> Any:
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and (url := lost_url(path)):
                raise ValueError(
                    f"{url} is a URL, and this must be a path of this machine: give a local file or folder"
                )
        return value


def lost_url(path: Path) -> str | None:
    """The URL of which somebody made a local path, such as the folder `s3:/bucket`; None for any other path."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/(.+)", path.as_posix())
    return f"{found[1]}://{found[2]}" if found else None


def check_deterministic(name: str, policy: ViewPolicy | None) -> None:
    """Raises ValueError if views of `policy`, the config's key `name`, are drawn at random."""
    if policy and (policy.jitter or policy.flip or policy.crop not in ("center", "three_crop", "full")):
        raise ValueError(f"{name} must be deterministic: jitter: false, flip: 0, crop: center, three_crop or full")


def formerly(**names: str) -> BeforeValidator:
    """Reads an old value of a key as its new value: `Annotated[Literal["new"], formerly(old="new")]`.

    So old configs, checkpoints, runs and caches can be read, and compare by the new values.
    """
    return BeforeValidator(lambda value: names.get(value, value) if isinstance(value, str) else value)
