"""`pipeline.py verify-cache`: does a cache hold what was committed, of these videos and this teacher?"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from cache.errors import ReskdError, StoreError
from cache.group import load_manifest
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.store import METADATA, side_by_side
from cache.verify import repair, verify
from cache.verify_group import DATA, HAND, REDO, RERUN, TIDY, Problem
from stages.models.checkpoints import load_model, weights_sha256
from stages.models.video_model import VideoModel, teacher_to_device
from stages.remote.url_path import Location
from stages.runtime.distributed import join_ranks
from stages.runtime.lock import locked
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import Terminal
from stages.shards.dataset import Dataset, open_dataset
from stages.teacher.audit import verify_targets
from stages.teacher.config import CacheConfig, FeaturesConfig
from stages.teacher.load_teacher import RECALIBRATED
from stages.teacher.teacher import Teacher

TABLE_ROWS = 40  # of the printed table
REMEDIES = {
    REDO: "--repair deletes the shard's group, cache-teacher computes it again",
    RERUN: "cache-teacher, run again, restores it",
    TIDY: "--repair deletes these files, which nothing reads",
    DATA: "give the data set that the cache was made of; the cache stays as it is",
    HAND: "check it yourself: the cache stays as it is",
}


def verify_cache(
    path: Location,
    *,
    data: Location | None = None,
    recompute: int = 0,
    teacher: Location | None = None,
    config: CacheConfig | None = None,
    repair_damage: bool = False,
) -> dict:
    """Check all of a cache and print its problems and what to do; with `repair_damage`, delete what is damaged.

    Returns {"problems": [...], "redo": shards whose groups are damaged, "lost": shards that the manifest calls finished
    and that are missing, "unfinished": number of shards that aren't committed yet, "verified": largest difference of a
    recomputed logit, None where nothing was recomputed}. `config` gives `data` and the teacher's checkpoint where they are
    not given.
    Raises ReskdError where `path` is no cache, its manifest is unreadable, or the teacher is not the cache's.
    """
    manifest = _load_manifest(path)
    data, teacher = data or (config and config.data), teacher or (config and config.teacher.checkpoint)
    dataset = open_dataset(data) if data is not None else None
    with join_ranks() as ranks, locked(path) if repair_damage and isinstance(path, Path) else nullcontext():
        model = _load_teacher_model(path, manifest, teacher, dataset) if recompute else None
        problems, worst = _data_problems(manifest, dataset) + _cache_problems(path, manifest, dataset), None
        if model is not None and not problems:
            problems, worst = _recompute(
                path, manifest, dataset, teacher_to_device(model, ranks.device).eval(), recompute
            )
        _show(path, manifest, problems)
        _show_plan(path, manifest, problems, repair_damage)
        if repair_damage and problems:
            repair(path, manifest, problems)
    return {
        "problems": [vars(problem) for problem in problems],
        "redo": sorted({p.shard for p in problems if p.remedy == REDO}),
        "lost": sorted({p.shard for p in problems if p.remedy == RERUN and p.shard}),
        "unfinished": _unfinished(path, manifest),
        "verified": worst,
    }


def _load_manifest(path: Location) -> Manifest:
    try:
        return load_manifest(path)
    except ReskdError as error:
        if not (path / METADATA).is_file() or "damaged" not in str(error):
            raise
        raise ReskdError(f"{path / METADATA}, the cache's manifest, is damaged: put it back from a copy. The shards' groups "
                         "are not touched, but only the manifest says what they hold. Without it, make the cache anew in "
                         "another folder with cache-teacher") from error  # fmt: skip


def _cache_problems(path: Location, manifest: Manifest, data: Dataset | None) -> list[Problem]:
    """The problems of the cache's files, under a progress bar. Frames are compared with the data set's videos."""
    known = {e.name: e.keys_sha256 for e in data.shards} if data is not None else {}
    same = {e.name for e in manifest.identity.shards if known.get(e.name) == e.keys_sha256}

    def lengths(shard: str) -> np.ndarray | None:
        if shard not in same:
            return None
        rows = data.rows(shard)  # a quarantined row has no targets: any length is right
        return np.array([row.frames if row.error is None else np.iinfo(np.int32).max for row in rows])

    with progress_bar("shards") as bar:
        task = bar.add_task("verify-cache", total=len(manifest.identity.shards), rate=0.0, note="")

        def progress(shard: str) -> None:
            bar.advance(task)
            bar.update(task, rate=bar.tasks[0].speed or 0.0, note=shard)

        return verify(path, manifest, lengths, progress)


def _data_problems(manifest: Manifest, data: Dataset | None) -> list[Problem]:
    """Where the data set differs from the one that the cache was made of. It may have fewer shards."""
    if data is None:
        return []
    cached_shards, problems = {entry.name: entry for entry in manifest.identity.shards}, []
    if tuple(data.classes) != tuple(manifest.identity.classes):
        problems.append(Problem("", f"{data.path} has other classes than the cache", DATA))
    for entry in data.shards:
        cached = cached_shards.get(entry.name)
        if cached is None:
            problems.append(Problem(entry.name, f"in {data.path} and not in the cache", DATA))
        elif (cached.clips, cached.keys_sha256) != (entry.clips, entry.keys_sha256):
            what = (
                f"{data.path} has other keys than the cache: it has {entry.clips} clips, the cache has {cached.clips}"
            )
            problems.append(Problem(entry.name, what, DATA))
    try:
        data.check_files()
    except ReskdError as error:
        problems.append(Problem("", str(error), DATA))
    return problems


def _load_teacher_model(
    path: Location, manifest: Manifest, checkpoint: Location | None, data: Dataset | None
) -> VideoModel:
    """The cache's teacher. Raises ReskdError where the checkpoint is of another teacher, or an option is missing."""
    for option, value in (("--data DATASET", data), ("--teacher CHECKPOINT", checkpoint)):
        if value is None:
            raise ReskdError(f"--recompute needs {option}, or --config FILE that names it")
    if manifest.finalised < 1 or _unfinished(path, manifest):
        raise ReskdError(f"{path} is not finished: run cache-teacher to the end before --recompute")
    wanted, (model, _) = manifest.identity.teacher, load_model(checkpoint)
    digest, known = weights_sha256(model), {wanted["weights_sha256"], wanted.get("base_weights_sha256")}
    if digest not in known:
        raise ReskdError(f"{checkpoint}: its weights ({digest[:12]}) are not those of the cache's teacher "
                         f"({' or '.join(sorted(w[:12] for w in known if w))}): give the checkpoint that {path} was made "
                         "with")  # fmt: skip
    if digest != wanted["weights_sha256"]:
        model, _ = load_model(path / RECALIBRATED)
        if weights_sha256(model) != wanted["weights_sha256"]:
            raise ReskdError(f"{path / RECALIBRATED}, the recalibrated teacher, is not the one that made the cache: put it "
                             "back, or make the cache anew")  # fmt: skip
    return model


def _recompute(
    path: Location, manifest: Manifest, data: Dataset, model: VideoModel, count: int
) -> tuple[list[Problem], float | None]:
    """Recompute `count` clip·views. Returns the problem if they are not the teacher's, else the largest difference of a logit."""
    settings, maps = manifest.identity.teacher, manifest.identity.targets.get("features")
    reader = CacheReader(path, tuple(manifest.identity.targets))
    constants = reader.constants() if maps else {}
    constants = {name: values for name, values in constants.items() if not name.startswith("classifier")}
    features, grid = (FeaturesConfig(codec=maps["codec"]), tuple(maps["grid"])) if maps else (None, None)
    dtype = getattr(torch, settings["dtype"])
    teacher = Teacher(model, settings["size"], dtype, settings["batch_size"], features, grid=grid, constants=constants)
    try:
        return [], verify_targets(data, replace(manifest, views=manifest.finalised), reader, teacher, count)
    except StoreError:
        raise
    except ReskdError as error:
        return [Problem("", str(error), HAND)], None


def _unfinished(path: Location, manifest: Manifest) -> int:
    """The number of shards that the manifest doesn't call finished, or that are missing."""
    finished = manifest.identity.shards[: manifest.finalised_shards]
    present = side_by_side(path, lambda entry: (path / entry.name / METADATA).is_file(), finished)
    return len(manifest.identity.shards) - sum(present)


def _say(text: str, **style: str) -> None:
    Terminal().print(text, markup=False, highlight=False, soft_wrap=True, **style)


def _show(path: Location, manifest: Manifest, problems: list[Problem]) -> None:
    identity = manifest.identity
    _say(f"{path}: {len(identity.shards)} shards, {sum(e.clips for e in identity.shards)} clips, {manifest.finalised} of "
         f"{manifest.views} views finished")  # fmt: skip
    if not problems:
        _say("no problems", style="green")
        return
    table = Table("where", "what", "remedy", title=f"{len(problems)} problems")
    for problem in problems[:TABLE_ROWS]:
        table.add_row(problem.shard or "the root", problem.what, problem.remedy)
    if len(problems) > TABLE_ROWS:
        table.add_row("…", f"and {len(problems) - TABLE_ROWS} more", "")
    Terminal().print(table)


def _show_plan(path: Location, manifest: Manifest, problems: list[Problem], repair_damage: bool) -> None:
    """The plan: which shards are deleted, because of what, and the command that computes them again."""
    for remedy, count in Counter(p.remedy for p in problems).items():
        _say(f"{remedy} ({count}): {REMEDIES[remedy]}")
    damaged = {p.shard for p in problems if p.remedy == REDO}
    reasons = {p.shard: p.what for p in reversed(problems) if p.shard and p.remedy in (REDO, RERUN)}
    for shard, reason in sorted(reasons.items()):
        action = ("deleting" if repair_damage else "to redo") if shard in damaged else "to finish"
        _say(f"{action}: {shard}, because of {reason}")
    if any(p.remedy in (REDO, RERUN) for p in problems):
        first = f"verify-cache {path} --repair, then " if damaged and not repair_damage else ""
        _say(f"next: {first}pipeline.py cache-teacher --config FILE --set output={path}, with the config that made it: it "
             "computes what is missing, and nothing else")  # fmt: skip
    elif not problems and _unfinished(path, manifest):
        _say("not finished: cache-teacher, run again, computes what is missing")
