"""`pipeline.py verify-cache`: is a cache what it was committed as, of these videos, and of this teacher?"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.store import METADATA
from cache.verify import repair, verify
from cache.verify_group import DATA, HAND, REDO, RERUN, TIDY, Problem
from stages.models.checkpoints import load_model, weights_sha256
from stages.models.video_model import VideoModel, place
from stages.runtime.distributed import join_ranks
from stages.runtime.lock import in_use
from stages.runtime.log import progress_bar
from stages.shards.dataset import Dataset, open_dataset
from stages.teacher.audit import verify_targets
from stages.teacher.config import CacheConfig, FeaturesConfig
from stages.teacher.teacher import RECALIBRATED, Teacher

SHOWN = 40  # rows of the table
REMEDIES = {
    REDO: "--repair deletes the shard's group, cache-teacher computes it again",
    RERUN: "cache-teacher, run again, restores it",
    TIDY: "--repair deletes these files, which nothing reads",
    DATA: "give the data set that the cache was made of; the cache is left as it is",
    HAND: "look into it: it is left as it is",
}


def verify_cache(
    path: Path,
    *,
    data: Path | None = None,
    recompute: int = 0,
    teacher: Path | None = None,
    config: CacheConfig | None = None,
    mend: bool = False,
) -> dict:
    """Check all of a cache, print what is wrong and what to do, and with `mend` remove what is damaged.

    Returns {"problems": [...], "redo": shards whose groups are damaged, "lost": those that are finished by the manifest
    and aren't there, "unfinished": shards that aren't committed yet, "verified": largest difference of a recomputed logit,
    None where nothing was recomputed}; whole is a cache without problems. `config`: whence `data` and the teacher's
    checkpoint are taken where they aren't given.
    Raises ReskdError where there is no cache, its manifest is unreadable, or the teacher is another one.
    """
    manifest = _manifest(path)
    data, teacher = data or (config and config.data), teacher or (config and config.teacher.checkpoint)
    dataset = open_dataset(data) if data is not None else None
    with join_ranks() as ranks, in_use(path) if mend else nullcontext():
        model = _model(path, manifest, teacher, dataset) if recompute else None
        problems, worst = _of_data(manifest, dataset) + _verified(path, manifest, dataset), None
        if model is not None and not problems:
            problems, worst = _recomputed(path, manifest, dataset, place(model, ranks.device).eval(), recompute)
        _show(path, manifest, problems)
        _advise(path, manifest, problems, mend)
        if mend and problems:
            repair(path, manifest, problems)
    return {
        "problems": [vars(problem) for problem in problems],
        "redo": sorted({p.shard for p in problems if p.remedy == REDO}),
        "lost": sorted({p.shard for p in problems if p.remedy == RERUN and p.shard}),
        "unfinished": _unfinished(path, manifest),
        "verified": worst,
    }


def _manifest(path: Path) -> Manifest:
    try:
        return load_manifest(path)
    except ReskdError as error:
        if not (path / METADATA).exists() or "damaged" not in str(error):
            raise
        raise ReskdError(f"{path / METADATA}, the cache's manifest, is damaged: put it back from a copy. The shards' groups "
                         "are not touched, but nothing else says what they are of; without it, cache-teacher must make "
                         "the cache anew in another folder") from error  # fmt: skip


def _verified(path: Path, manifest: Manifest, data: Dataset | None) -> list[Problem]:
    """Under a progress bar; frames are held against the videos of the shards that the data set has."""
    known = {e.name: e.keys_sha256 for e in data.shards} if data is not None else {}
    same = {e.name for e in manifest.identity.shards if known.get(e.name) == e.keys_sha256}

    def lengths(shard: str) -> np.ndarray | None:
        if shard not in same:
            return None
        rows = data.rows(shard)  # a quarantined row has no frames, and no targets either
        return np.array([row.frames if row.error is None else np.iinfo(np.int32).max for row in rows])

    with progress_bar("shards") as bar:
        task = bar.add_task("verify-cache", total=len(manifest.identity.shards), rate=0.0, note="")

        def progress(shard: str) -> None:
            bar.advance(task)
            bar.update(task, rate=bar.tasks[0].speed or 0.0, note=shard)

        return verify(path, manifest, lengths, progress)


def _of_data(manifest: Manifest, data: Dataset | None) -> list[Problem]:
    """What of the data set isn't what the cache was made of. It may have fewer shards."""
    if data is None:
        return []
    stored, problems = {entry.name: entry for entry in manifest.identity.shards}, []
    if tuple(data.classes) != tuple(manifest.identity.classes):
        problems.append(Problem("", f"{data.path} has other classes than the cache", DATA))
    for entry in data.shards:
        there = stored.get(entry.name)
        if there is None:
            problems.append(Problem(entry.name, f"in {data.path} and not in the cache", DATA))
        elif (there.clips, there.keys_sha256) != (entry.clips, entry.keys_sha256):
            what = f"{data.path} has other keys there: {entry.clips} clips, the cache {there.clips}"
            problems.append(Problem(entry.name, what, DATA))
    try:
        data.check_files()
    except ReskdError as error:
        problems.append(Problem("", str(error), DATA))
    return problems


def _model(path: Path, manifest: Manifest, checkpoint: Path | None, data: Dataset | None) -> VideoModel:
    """The cache's own teacher; raises ReskdError where the checkpoint is of another, or something isn't given."""
    for what, given in (("--data DATASET", data), ("--teacher CHECKPOINT", checkpoint)):
        if given is None:
            raise ReskdError(f"--recompute needs {what}, or --config FILE that names it")
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


def _recomputed(
    path: Path, manifest: Manifest, data: Dataset, model: VideoModel, count: int
) -> tuple[list[Problem], float | None]:
    """The problem, where targets are not the teacher's; the largest difference of a logit, where they are."""
    run, maps = manifest.identity.teacher, manifest.identity.targets.get("features")
    reader = CacheReader(path, tuple(manifest.identity.targets))
    constants = reader.constants() if maps else {}
    constants = {name: values for name, values in constants.items() if not name.startswith("classifier")}
    features, grid = (FeaturesConfig(codec=maps["codec"]), tuple(maps["grid"])) if maps else (None, None)
    dtype = getattr(torch, run["dtype"])
    teacher = Teacher(model, run["size"], dtype, run["batch_size"], features, grid=grid, constants=constants)
    try:
        return [], verify_targets(data, replace(manifest, views=manifest.finalised), reader, teacher, count)
    except ReskdError as error:
        return [Problem("", str(error), HAND)], None


def _unfinished(path: Path, manifest: Manifest) -> int:
    """Shards that the manifest doesn't call finished, or that aren't there."""
    finished = manifest.identity.shards[: manifest.finalised_shards]
    return len(manifest.identity.shards) - sum((path / e.name / METADATA).exists() for e in finished)


def _say(text: str, **style: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True, **style)


def _show(path: Path, manifest: Manifest, problems: list[Problem]) -> None:
    identity = manifest.identity
    _say(f"{path}: {len(identity.shards)} shards, {sum(e.clips for e in identity.shards)} clips, {manifest.finalised} of "
         f"{manifest.views} views finished")  # fmt: skip
    if not problems:
        _say("no problems", style="green")
        return
    table = Table("where", "what", "remedy", title=f"{len(problems)} problems")
    for problem in problems[:SHOWN]:
        table.add_row(escape(problem.shard or "the root"), escape(problem.what), problem.remedy)
    if len(problems) > SHOWN:
        table.add_row("…", f"and {len(problems) - SHOWN} more", "")
    Console().print(table)


def _advise(path: Path, manifest: Manifest, problems: list[Problem], mend: bool) -> None:
    """The plan: which shards go, because of what, and the command that brings them back."""
    for remedy, count in Counter(p.remedy for p in problems).items():
        _say(f"{remedy} ({count}): {REMEDIES[remedy]}")
    damaged = {p.shard for p in problems if p.remedy == REDO}
    because = {p.shard: p.what for p in reversed(problems) if p.shard and p.remedy in (REDO, RERUN)}
    for shard, what in sorted(because.items()):
        deed = ("deleting" if mend else "to redo") if shard in damaged else "to finish"
        _say(f"{deed}: {shard}, because of {what}")
    if any(p.remedy in (REDO, RERUN) for p in problems):
        first = f"verify-cache {path} --repair, then " if damaged and not mend else ""
        _say(f"next: {first}pipeline.py cache-teacher --config FILE --set output={path}, with the config that made it: it "
             "does what is missing, and nothing else")  # fmt: skip
    elif not problems and _unfinished(path, manifest):
        _say("not finished: cache-teacher, run again, does what is missing")
