"""Finds what the report can read below the given paths: runs, sweeps, caches, evaluations, studies, data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from cache.errors import ReskdError
from cache.json_file import parse_json
from cache.store import METADATA, side_by_side
from stages.remote.url_path import Location, UrlPath, file_size
from stages.shards.index import INDEX
from stages.stream.pack_files import PACK

SWEEP = "sweep.json"
MAX_DEPTH = 6  # folders below a given one: a study has its students' runs three folders down
MAX_BYTES = 16 << 20  # of a JSON file that is looked into: none of ours is as large, those of others may have GBs
_MARKS = {METADATA, PACK, INDEX, "config.yaml"}
_OTHERS = {"result.json", "seconds.json", "passes.json", "memory.json", "summary.json", "outcome.json", "prepare.json"}


@dataclass
class Sources:
    """The paths that were found, by kind, and the problems: a path and what is wrong with it."""

    runs: list[Location] = field(default_factory=list)
    caches: list[Location] = field(default_factory=list)
    data_sets: list[Location] = field(default_factory=list)
    evaluations: list[Location] = field(default_factory=list)
    sweeps: list[Location] = field(default_factory=list)  # the files sweep.json
    studies: list[Location] = field(default_factory=list)  # the files study.json
    problems: list[tuple[str, str]] = field(default_factory=list)

    def count(self) -> int:
        return sum(len(found) for found in vars(self).values())


def find_sources(paths: Sequence[Location]) -> Sources:
    """Looks into folders and files; links to folders are followed where they are given, and not below. At a URL itself there may
    be a cache, a data set, a run, or a sweep, which names its runs.

    Raises ReskdError if none of the paths exists, or only URLs are given and nothing of ours is there. One that doesn't exist, or
    holds nothing of ours, is a problem.
    """
    if not any(isinstance(path, UrlPath) or path.exists() for path in paths):
        raise ReskdError(f"{', '.join(map(str, paths))}: no such file or folder. Give folders of runs, sweeps or caches, or the "
                         "JSON of an evaluation or a study")  # fmt: skip
    sources = Sources()
    for path in dict.fromkeys(paths):
        before = sources.count()
        if isinstance(path, UrlPath):
            _look_at_url(path, sources)
        elif not path.exists():
            sources.problems.append((str(path), "no such file or folder"))
        elif path.is_dir():
            _look_into(path, sources, 0)
        else:
            _sort_in(path, sources)
        if sources.count() == before and not isinstance(path, UrlPath):
            sources.problems.append((str(path), "holds no run, sweep, cache, evaluation or study"))
    if sources.count() == len(sources.problems) and not any(isinstance(p, Path) and p.exists() for p in paths):
        raise ReskdError("\n".join(f"{path}: {reason}" for path, reason in sources.problems))
    for kind, found in vars(sources).items():
        setattr(sources, kind, list(dict.fromkeys(found)))
    return sources


def _look_at_url(url: UrlPath, sources: Sources) -> None:
    """Nothing is listed: a store may have millions of objects. A run's evaluation is test.json, as `sweep` names it."""
    before = sources.count()
    try:
        if url.suffix == ".json":
            _sort_in(url, sources)
        elif (url / METADATA).is_file():
            sources.caches.append(url)
        elif (url / INDEX).is_file():
            sources.data_sets.append(url)
        else:
            names = _sort_in(url / SWEEP, sources) if (url / SWEEP).is_file() else ()
            _look_at_runs([url, *(url / name for name in names)], sources)
        if sources.count() == before:
            sources.problems.append((str(url), "no run, sweep, cache or data set is at this URL, and what is below it isn't "
                                     "listed: give the URLs of runs; a sweep has its sweep.json at its end"))  # fmt: skip
    except ReskdError as error:  # the rest of the page is made
        sources.problems.append((str(url), str(error)))


def _look_at_runs(urls: Sequence[UrlPath], sources: Sources) -> None:
    """The runs among these URLs, and their evaluations."""
    found = side_by_side(urls[0], lambda url: [(url / name).is_file() for name in ("config.yaml", "test.json")], urls)
    for url, (is_run, is_scored) in zip(urls, found, strict=True):
        sources.runs += [url] * is_run
        if is_scored:
            _sort_in(url / "test.json", sources)


def _look_into(folder: Path, sources: Sources, depth: int) -> None:
    try:
        os.stat(os.path.join(folder, "."))  # fails where the files may be listed and not opened
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        sources.problems.append((str(folder), f"can't be read ({error.strerror})"))
        return
    names = {e.name for e in entries if e.name in _MARKS and os.path.isfile(e)}
    if METADATA in names:  # below it there are only its shards
        sources.caches.append(folder)
        return
    if PACK in names:  # its pictures are in the data set, too
        return
    if INDEX in names:
        sources.data_sets.append(folder)
        return
    if "config.yaml" in names:
        sources.runs.append(folder)
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if depth < MAX_DEPTH and not entry.name.startswith(".") and entry.name != "tensorboard":
                _look_into(path, sources, depth + 1)
        elif entry.name.endswith(".json") and not entry.name.startswith(".") and entry.name not in _OTHERS:
            _sort_in(path, sources)


def _sort_in(file: Location, sources: Sources) -> list[str]:
    """Put a JSON file where it belongs. A file of another kind is passed over. Returns the students that a sweep's file names."""
    if file.suffix != ".json":
        return []
    at_url = isinstance(file, UrlPath)
    if not (file.is_file() if at_url else os.path.isfile(file)):  # a pipe would be waited for
        sources.problems.append((str(file), "no such object" if at_url else "is no regular file: left out"))
        return []
    try:
        if file_size(file) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB, more than any JSON that the report shows")
        content = parse_json(file.read_bytes(), nan=True)
    except (OSError, ValueError) as error:
        sources.problems.append((str(file), f"can't be read ({error})"))
        return []
    if (kind := _kind(content)) is not None:
        getattr(sources, kind).append(file)
    parts = (content.get(part) for part in ("students", "failed")) if kind == "sweeps" else ()
    return [name for part in parts if isinstance(part, dict) for name in part]


def _kind(content: Any) -> str | None:
    if not isinstance(content, dict):
        return None
    if {"protocol", "checkpoint", "headline"} <= content.keys():
        return "evaluations"
    if {"students", "points", "front"} <= content.keys():
        return "sweeps"
    if {"arms", "best"} <= content.keys():
        return "studies"
    return None


def check_output(output: Path, sources: Sources) -> None:
    """Raises ReskdError if the output is a file that the report reads: it would be overwritten."""
    target, evaluations = Path(os.path.realpath(output)), _local(sources.evaluations)
    files = {Path(os.path.realpath(path)) for path in (*evaluations, *_local((*sources.sweeps, *sources.studies)))}
    for file in evaluations:
        tables = (file.with_name(f"{file.name.removesuffix('.json')}.{kind}.csv") for kind in ("classes", "answers"))
        files |= {Path(os.path.realpath(table)) for table in tables}
    for run in _local(sources.runs):
        files |= {Path(os.path.realpath(run / name)) for name in ("config.yaml", "metrics.jsonl", "result.json")}
    folders = {Path(os.path.realpath(path)) for path in _local((*sources.caches, *sources.data_sets))}
    if target in files or (target.exists() and folders.intersection(target.parents)):
        raise ReskdError(f"{output} is an input, which would be overwritten: give another name")


def _local(paths: Sequence[Location]) -> list[Path]:
    return [path for path in paths if isinstance(path, Path)]


def short_names(paths: Sequence[Location]) -> list[str]:
    """A name for each path: what is left of them without the folder that holds all of them. Among local paths, and alone, a URL
    is its own name.

    JSON files are called by their names without .json; if these are all equal, by their folders.
    """
    local = _local(paths)
    if not local and len(paths) > 1:
        return _short_names([PurePosixPath("/", str(path).replace("://", "/")) for path in paths])
    names = iter(_short_names([Path(os.path.abspath(path)) for path in local]))
    return [next(names) if isinstance(path, Path) else str(path) for path in paths]


def _short_names(whole: list[PurePath]) -> list[str]:
    if not whole:
        return []
    if all(path.suffix == ".json" for path in whole):
        same = len({path.name for path in whole}) == 1
        whole = [path.parent if same else path.with_suffix("") for path in whole]
    common = os.path.commonpath([path.parent for path in whole])
    return [path.relative_to(common).as_posix() for path in whole]
