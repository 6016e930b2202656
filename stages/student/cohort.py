"""What the students of a cohort must share. A cohort is one or more students that are trained on one stream of clips.

config.py has the config of one student. cohort_config.py reads the configs of a cohort from one file. cohort_stream.py
opens the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.config.file import flat
from stages.student.config import TrainConfig
from stages.student.run_folder import stored_views

# Keys that students on one stream must share. They may differ in all others.
SHARED = ("data", "teacher", "policy", "eval_policy", "batch_size", "accumulate", "log_every", "checkpoint_every",
          "loader", "model.num_frames")  # fmt: skip


def check_shared(configs: Mapping[str, TrainConfig]) -> None:
    """Raise ReskdError if students can't share a stream. The message names the first key in which two of them differ."""
    (first, first_config), *others = configs.items()
    outputs: dict[Path, str] = {}
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


def with_stored_views(configs: Mapping[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The configs with as many views as their runs began with. The cache may have more views since then."""
    shared = next(iter(configs.values()))
    stored = [views for config in configs.values() if (views := stored_views(config))]
    if not shared.data.cache or shared.data.views is not None or not stored:
        return dict(configs)
    fixed = shared.data.model_copy(update={"views": stored[0]})
    return {name: config.model_copy(update={"data": fixed}) for name, config in configs.items()}
