"""A cache's identity in today's names, so that caches of older versions are recognised."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from stages.models.config import ModelConfig

DEFAULTS = {"bn": "running", "compile": False}  # an older version's teacher had these values, and no such keys


def in_todays_names(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity's JSON (see `Identity.comparable`) with old names translated and absent keys at their defaults.

    For comparisons alone. The stored identity and its fingerprints stay as they are.
    """
    teacher = {**DEFAULTS, **identity["teacher"]}
    with suppress(ValidationError):  # a newer version's model: the comparison names the difference
        teacher["model"] = ModelConfig.model_validate(teacher["model"]).model_dump(mode="json")
    return {**identity, "teacher": teacher}
