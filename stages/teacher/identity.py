"""A cache's identity in today's names, so that a cache of an older version is known again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from stages.models.config import ModelConfig

ABSENT = {"bn": "running", "compile": False}  # what an older version's teacher had, where it doesn't say


def in_todays_names(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity's JSON (see `Identity.comparable`) with old names translated and absent keys at their defaults.

    It is for comparison alone. What is stored, and its fingerprints, stay as they are.
    """
    teacher = {**ABSENT, **identity["teacher"]}
    with suppress(ValidationError):  # of a newer version's model: the comparison names what differs
        teacher["model"] = ModelConfig.model_validate(teacher["model"]).model_dump(mode="json")
    return {**identity, "teacher": teacher}
