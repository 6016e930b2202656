"""What the students of a cohort must share. A cohort is one or more students that are trained on one stream of clips.

config.py has the config of one student. cohort_config.py reads the configs of a cohort from one file. cohort_stream.py
opens the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cache.errors import ReskdError
from stages.config.file import flat
from stages.remote.url_path import Location
from stages.student.config import TrainConfig
from stages.student.run_folder import stored_config

# Keys that students on one stream must share. They may differ in all others.
SHARED = ("data", "teacher", "policy", "eval_policy", "batch_size", "accumulate", "log_every", "checkpoint_every",
          "loader", "model.num_frames")  # fmt: skip


def check_shared(configs: Mapping[str, TrainConfig]) -> None:
    """Raise ReskdError if students can't share a stream. The message names the first key in which two of them differ."""
    (first, first_config), *others = configs.items()
    outputs: dict[Location, str] = {}
    for name, config in configs.items():
        if config.output in outputs:
            raise ReskdError(
                f"the students {outputs[config.output]} and {name} have one output, {config.output}: give each its own"
            )
        outputs[config.output] = name
    first_keys = shared_keys(first_config)
    for name, config in others:
        keys = shared_keys(config)
        key = next((key for key in sorted(first_keys | keys) if first_keys.get(key) != keys.get(key)), None)
        if key is not None:
            raise ReskdError(f"students on one stream must agree on {key}: it is {first_keys.get(key)!r} for {first} and "
                             f"{keys.get(key)!r} for {name}: train them one after another, or set it for all")  # fmt: skip


def shared_keys(config: TrainConfig) -> dict[str, Any]:
    """The keys that students on one stream must share ("data.views", ...), with this student's values."""
    values = flat(config.model_dump(mode="json")) | {"data.order_seed": order_seed(config)}
    shared = (*SHARED, "amp") if config.teacher else SHARED  # a teacher in the loop answers all students in one dtype
    return {key: value for key, value in values.items() if key in shared or key.split(".")[0] in shared}


def order_seed(config: TrainConfig) -> int:
    """The seed of the clips' order."""
    return config.seed if config.data.order_seed is None else config.data.order_seed


def as_begun(configs: Mapping[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The configs with what their runs began with, where they leave it to defaults: the number of views, and the warm-up.

    The cache may have more views since then, and another version may have had another warm-up.
    """
    stored = {name: begun for name, config in configs.items() if (begun := stored_config(config))}
    views = next((begun.data.views for begun in stored.values() if begun.data.views), None)
    return {name: _filled(config, views, stored.get(name)) for name, config in configs.items()}


def _filled(config: TrainConfig, views: int | None, begun: TrainConfig | None) -> TrainConfig:
    filled = {}
    if config.data.cache and config.data.views is None:
        filled["data"] = config.data.model_copy(update={"views": views})
    if begun and config.schedule.warmup_epochs is None:
        filled["schedule"] = config.schedule.model_copy(update={"warmup_epochs": begun.schedule.warmup_epochs})
    return config.model_copy(update=filled)
