"""Runs that differ in their seeds alone count as one, with a mean and a spread; and the keys in which runs differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from stages.report.runs import Run
from stages.student.run_folder import FREE_KEYS

_SEED_AT_END = re.compile(r"[-_ .,/=]*(seed|s)?[-_ .,/=]*\d*$")


@dataclass(frozen=True)
class SeedGroup:
    """Runs whose configs differ in `seed` alone (and in keys that change no result). `name`: what their names share."""

    name: str
    runs: tuple[Run, ...]

    @property
    def best(self) -> float:
        """The mean of the runs' best validations, in percent; -inf if one has none."""
        scores = [run.best for run in self.runs]
        return -math.inf if None in scores else sum(scores) / len(scores)

    @property
    def label(self) -> str:
        return self.name if len(self.runs) == 1 else f"{self.name} ({len(self.runs)} seeds)"


def group_by_seed(runs: Sequence[Run]) -> list[SeedGroup]:
    """The groups in the order of their first runs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        without = {key: value for key, value in run.config.items() if key != "seed" and key not in FREE_KEYS}
        found.setdefault(json.dumps(without, sort_keys=True, default=str), []).append(run)
    names = [_shared_name([run.name for run in group]) for group in found.values()]
    return [
        SeedGroup(name if names.count(name) == 1 else group[0].name, tuple(group))
        for name, group in zip(names, found.values(), strict=True)
    ]


def _shared_name(names: list[str]) -> str:
    """ "a,seed=0,b" and "a,seed=1,b" share "a,b"; "x-0" and "x-1" share "x"."""
    if len(names) == 1:
        return names[0]
    if "seed=" in names[0]:
        return ",".join(part for part in names[0].split(",") if not part.startswith("seed=")) or names[0]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return _SEED_AT_END.sub("", "".join(letters[0] for letters in same)) or names[0]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values aren't equal in all configs, but for `output`, which differs always."""
    keys = dict.fromkeys(key for config in configs for key in config)
    missing = object()
    return [
        key
        for key in keys
        if key != "output" and any(c.get(key, missing) != configs[0].get(key, missing) for c in configs)
    ]


def with_joined_sections(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The configs, with one text in place of the keys of a section that some configs don't have: "crop center, flip 0".

    So a `policy` that only some runs have is one difference, and not one for each of its keys.
    """
    absent = {key for config in configs for key, value in config.items() if value is None}
    joined = []
    for config in configs:
        result: dict[str, Any] = {}
        for key, value in config.items():
            section, _, rest = key.partition(".")
            if rest and section in absent:
                result[section] = f"{result[section]}, {rest} {value}" if section in result else f"{rest} {value}"
            else:
                result[key] = value
        joined.append(result)
    return joined
