"""Runs the steps of a cache's life and dies at the k-th call that touches the disk, for every k. Started by
test_kills.py as a process of its own, small enough to fork hundreds of times.

Prints one JSON object: {"calls": how many there are, "states": how many different folders the kills left behind,
"wrong": [what went wrong at which k]}.
"""

import json
import os
import re
import shutil
import sys
import threading
from pathlib import Path

from small_caches import content, identity_of, keys_of, make_cache, tree_of, write_views

from cache.manifest import Manifest
from cache.reader import CacheReader, load_manifest
from cache.writer import committed_views, create_cache, finalise

SHARD, CLIPS, DIED = "a/000001.tar", 2, 137
SHARDS = {SHARD: CLIPS}


def die_at(k: int) -> list[int]:
    """From here on the process dies in the k-th call: before it takes effect, and with a file half written if it
    writes one. Returns the counter."""
    calls, lock = [0], threading.Lock()

    def counted(function, half=None):
        def call(*args, **kwargs):
            with lock:
                calls[0] += 1
                if calls[0] == k:
                    if half is not None:
                        half(*args)
                    os._exit(DIED)
            return function(*args, **kwargs)

        return call

    def truncate(source, target, **_):
        """The file that was to be renamed is only half there, as after a kill in mid-write."""
        if os.path.isfile(source):
            os.truncate(source, os.path.getsize(source) // 2)

    # zarr's LocalStore writes a file of another name and then calls os.replace, as we do.
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name), truncate if name == "replace" else None))
    return calls


def first_commit(path: Path) -> None:
    manifest = create_cache(path, Manifest(identity_of(SHARDS, features=True), 1))
    for shard in SHARDS:
        if committed_views(path, shard) < 1:
            write_views(path, manifest, shard, range(1), invalid=[1])
    finalise(path)


def growth(path: Path) -> None:
    manifest = create_cache(path, Manifest(identity_of(SHARDS, features=True), 2))
    for shard in SHARDS:
        done = committed_views(path, shard)
        if done < 2:
            write_views(path, manifest, shard, range(done, 2), invalid=[1])
    finalise(path)


def check(path: Path, before: int, after: int) -> None:
    """Whoever reads now sees, of every shard, the views before the step or those after it, all of them whole."""
    if not (path / "zarr.json").exists():
        assert before == 0, "the manifest is gone"
        return
    manifest, reader = load_manifest(path), CacheReader(path, ("logits", "features"))
    assert manifest.finalised in (before, after), f"finalised is {manifest.finalised}"
    assert manifest.quarantine == ({s: {1: "no video stream"} for s in SHARDS} if manifest.finalised else {})
    for shard in SHARDS:
        views = committed_views(path, shard)
        assert views in (before, after), f"{shard} has {views} views"
        assert views >= manifest.finalised, f"{shard} has {views} views, {manifest.finalised} are finalised"
        for view in range(views):
            block, wanted = reader.block(shard, view, 0), content(manifest.identity, shard, view, [1])
            assert list(block.keys) == keys_of(shard, CLIPS)
            assert (block.frames == wanted["frames"]).all() and (block.valid == wanted["valid"]).all()
            assert (block.features[0] == wanted["features"][0].astype("float16")).all()


def in_child(function, *args) -> tuple[int, str]:
    """Run a function in a fork; its exit status (1: it raised) and what it returned or raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status, text = 0, ""
        try:
            text = str(function(*args))
        except BaseException as error:
            status, text = 1, f"{type(error).__name__}: {error}"
        os.write(writing, text[:4000].encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def killed(step, path: Path, k: int) -> int:
    calls = die_at(k)
    step(path)
    return calls[0]


def state_of(path: Path) -> frozenset:
    """What a kill left, apart from the random names of zarr's unfinished files."""
    return frozenset((re.sub(r"[0-9a-f]{32}\.partial", "partial", name), d) for name, d in tree_of(path).items())


def aftermath(step, path: Path, k: int, before: int, after: int, wanted: dict) -> list[str]:
    """What is wrong with the folder that a kill left behind, and with what the next runs make of it."""
    outcomes = [("read", in_child(check, path, before, after))]
    if k % 4 == 0:  # killed a second time, elsewhere, on the way to the end
        status, text = in_child(killed, step, path, 1 + k // 4)
        outcomes.append(("killed again", (0 if status == DIED else status, text)))
        outcomes.append(("read again", in_child(check, path, before, after)))
    outcomes.append(("rerun", in_child(step, path)))
    wrong = [f"call {k}, {what}: {text}" for what, (status, text) in outcomes if status != 0]
    differing = sorted(wanted.items() ^ tree_of(path).items())
    return wrong + ([f"call {k}: the rerun ends in other files: {differing[:6]}"] if differing else [])


def run(name: str, folder: Path) -> dict:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written: only a power cut would
    step, before, after = {"first_commit": (first_commit, 0, 1), "growth": (growth, 1, 2)}[name]
    base, undisturbed, path = folder / "base", folder / "undisturbed", folder / "path"
    if before:
        assert in_child(first_commit, base)[0] == 0
        shutil.copytree(base, undisturbed)
    status, calls = in_child(killed, step, undisturbed, 0)
    assert status == 0, calls
    wanted, wrong, seen = tree_of(undisturbed), [], set()
    for k in range(1, int(calls) + 1):
        shutil.rmtree(path, ignore_errors=True)
        if before:
            shutil.copytree(base, path)
        status, text = in_child(killed, step, path, k)
        if status != DIED:
            wrong.append(f"call {k} did not kill: {status} {text}")
        state = state_of(path)
        if state not in seen:  # what follows depends on the folder alone, and an fsync changes nothing in it
            seen.add(state)
            wrong += aftermath(step, path, k, before, after, wanted)
    make_cache(folder / "whole", SHARDS, after, features=True, invalid=[1])
    if tree_of(folder / "whole") != wanted:
        wrong.append("the undisturbed run ends in other files than a cache made at once")
    return {"calls": int(calls), "states": len(seen), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
