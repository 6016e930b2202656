"""A run's folder as the report reads it: config, curves, result. A run may be unfinished."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.errors import ReskdError
from cache.json_file import parse_json, read_json, read_limited
from stages.config.file import flat
from stages.config.yaml_text import read_yaml
from stages.remote.url_path import Location, location, resolved

MAX_ROWS = 600  # of metrics.jsonl that are read, besides the validations: a chart has no room for more


@dataclass(frozen=True)
class Curve:
    """One line of a chart: x and y, float64 [n] each; y is NaN where a value isn't finite."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Term:
    """One loss of a run over the steps: its weight, and its values (not weighted) at the same steps."""

    weights: Curve
    curve: Curve


@dataclass(frozen=True)
class Run:
    """A folder that train-student, sweep, demo or bench have made. `config`: "a.b" -> value."""

    name: str
    path: Location
    config: Mapping[str, Any]
    loss: Curve  # over steps
    terms: Mapping[str, Term]
    validation: Curve  # of `metric` in percent, over epochs
    metric: str  # "top1" or "map"
    failed_clips: int
    gflops: float | None  # of a view; known once the run is finished
    seconds: float | None
    clips_seen: int  # in its training; 0: not finished
    weights: bool  # whether the folder holds any
    faults: tuple[str, ...]  # what of the folder can't be read

    @property
    def finished(self) -> bool:
        return self.seconds is not None

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        if self.finished:
            return "finished" if self.weights else "finished, its weights are gone"
        if not len(self.loss.x):
            return "begun, nothing is logged yet"
        steps = f"not finished, at step {self.loss.x[-1]:.0f}"
        return steps if self.weights else f"{steps}, no checkpoint yet"

    def reads(self, cache: Location) -> bool:
        """Whether the run's targets are those of this cache."""
        of_run = self.config.get("data.cache")
        return bool(of_run) and resolved(location(str(of_run))) == resolved(cache)

    @property
    def best(self) -> float | None:
        """The best validation, in percent."""
        return None if np.isnan(self.validation.y).all() else float(np.nanmax(self.validation.y))


def read_run(path: Location, name: str) -> Run:
    """Raises ReskdError if the folder's config.yaml is no config of a run. Other damage is in the run's `faults`."""
    config, faults = read_yaml(path / "config.yaml"), []
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict) or "output" not in config:
        raise ReskdError(f"{path / 'config.yaml'} is not the config of a run: its folder is left out")
    rows, result = [], {}
    try:
        rows = _checked(_read_rows(path / "metrics.jsonl"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        faults.append(f"{path / 'metrics.jsonl'} can't be read ({error})")
    try:
        if (path / "result.json").is_file():
            found = read_json(path / "result.json", nan=True)
            result = {key: float(found[key]) for key in ("gmacs", "seconds", "failed_clips", "clips_seen")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        faults.append(f"{path / 'result.json'} can't be read ({error!r})")
    train = [row for row in rows if row["kind"] == "train"]
    scores = [row for row in rows if row["kind"] == "val"]
    metric = "map" if scores and scores[-1].get("headline") == "map" else "top1"
    weights = any((path / file).is_file() for file in ("last.pt", "last.safetensors", "best.safetensors"))
    return Run(
        name=name,
        path=path,
        config=flat(config),
        loss=curve([(row["step"], row["loss"]) for row in train]),
        terms=_terms(train),
        validation=curve([(row["epoch"], row[metric]) for row in scores]),
        metric=metric,
        failed_clips=int(result.get("failed_clips", train[-1]["failed_clips"] if train else 0)),
        gflops=result.get("gmacs"),
        seconds=result.get("seconds"),
        clips_seen=int(result.get("clips_seen", 0)),
        weights=weights,
        faults=tuple(faults),
    )


def _read_rows(path: Location) -> list[dict]:
    """The rows of metrics.jsonl; of a long one all validations, the last row, and every n-th of the others.

    A run that is at work may have written half of the last line, which is left out.
    """
    if not path.is_file():
        return []
    lines = [line for line in read_limited(path).splitlines(keepends=True) if line.endswith(b"\n")]
    every = -(-len(lines) // MAX_ROWS)
    last = len(lines) - 1
    return [parse_json(line, nan=True) for i, line in enumerate(lines)
            if (last - i) % every == 0 or b'"kind": "val"' in line]  # fmt: skip


def _checked(rows: list[dict]) -> list[dict]:
    """The rows of training and validation. Raises TypeError, KeyError or ValueError if their values are none of ours."""
    kept = [row for row in rows if row["kind"] in ("train", "val")]
    for row in kept:
        row["step"] = float(row["step"])
        if row["kind"] == "val":
            row["epoch"], row["top1"], row["map"] = float(row["epoch"]), float(row["top1"]), float(row["map"])
        else:
            row["loss"], row["failed_clips"] = float(row["loss"]), int(row["failed_clips"])
            row["terms"] = {str(n): (float(t["weight"]), float(t["value"])) for n, t in row["terms"].items()}
    return kept


def _terms(rows: list[dict]) -> dict[str, Term]:
    names = dict.fromkeys(name for row in rows for name in row["terms"])
    points = {name: [(row["step"], *row["terms"][name]) for row in rows if name in row["terms"]] for name in names}
    return {
        name: Term(curve([(step, weight) for step, weight, _ in of]), curve([(step, value) for step, _, value in of]))
        for name, of in points.items()
    }


def curve(points: list[tuple[float, float]]) -> Curve:
    """A curve through (x, y)."""
    clean = sorted((x, y if math.isfinite(y) else math.nan) for x, y in points)
    x, y = np.array(clean, np.float64).reshape(-1, 2).T
    return Curve(x, y)
