"""Runs the steps of a cache's life and looks at what a kill at the k-th call that touches the disk leaves, for every k (or
every so many). With the step "teacher_time" it runs `finalise` alone, with logs of two ranks: all teacher time counts once.

A kill leaves on the disk what is there when it comes. So one run that copies its folder before each call shows what all
kills leave, without a run for each of them. The second kills, on the way to the end, are kills.

Started by test_kills.py as a process of its own, small enough to fork hundreds of times, with a folder and the steps, each as
NAME=STRIDE (of "teacher_time", every call is tried). Prints each step's name to stderr as it begins, and one JSON object, of each
step {"calls": how many there are, "states": how many different folders the kills left behind, "wrong": [what went wrong at which
k]}.
"""

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from small_caches import CONSTANTS, content, identity_of, keys_of, tree_of, write_views

from cache.create import create_cache
from cache.finalise import finalise
from cache.group import load_group, load_manifest
from cache.growth import missing_work
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.teacher_time import open_time_log, teacher_time_of

SHARD, NEW, CLIPS, DIED = "a/000001.tar", "a/000000.tar", 2, 137


def at_each_call(act: Callable[[int, str | None], None]) -> list[int]:
    """From here on, `act(k, file)` is called before the k-th call takes effect. `file`: which the call would rename. Returns
    the counter."""
    calls, acting, lock = [0], [], threading.RLock()  # `act` may touch the disk itself: that counts for nothing

    def counted(function, renames):
        def call(*args, **kwargs):
            with lock:
                if not acting:
                    calls[0] += 1
                    acting.append(True)
                    act(calls[0], args[0] if renames else None)
                    acting.clear()
            return function(*args, **kwargs)

        return call

    # zarr's LocalStore writes a file of another name and then calls os.replace, as we do.
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name), name == "replace"))
    return calls


def halve(file: str | Path) -> None:
    """The file that was to be renamed is only half there, as after a kill in mid-write."""
    if os.path.isfile(file):
        os.truncate(file, os.path.getsize(file) // 2)


def die_at(k: int) -> None:
    """The process dies in the k-th call from here: before it takes effect, and with a file half written if it writes one."""

    def act(call: int, file: str | None) -> None:
        if call == k:
            if file is not None:
                halve(file)
            os._exit(DIED)

    at_each_call(act)


def keep_what_kills_leave(function: Callable[[], object], path: Path, folder: Path, stride: int) -> int:
    """Calls `function`, which writes into `path`. `folder`/k is what a kill at the k-th call would leave of it: for the first
    call and each `stride` calls after it. Returns how many calls there are."""

    def act(call: int, file: str | None) -> None:
        if (call - 1) % stride == 0:
            left = folder / str(call)
            if path.exists():
                copy(path, left)
            if file is not None and path in Path(file).parents:
                halve(left / Path(file).relative_to(path))

    folder.mkdir()
    calls = at_each_call(act)
    function()
    return calls[0]


def copy(path: Path, to: Path) -> None:
    """zarr writes in several threads: a file of another one may get its name between the listing and the copy."""
    for _ in range(20):
        try:
            shutil.copytree(path, to)
            return
        except shutil.Error:
            shutil.rmtree(to)
    raise TimeoutError(f"{path} changes all the time")


def bring_to(path: Path, wanted: Manifest) -> None:
    """What stage one does: whatever is missing."""
    manifest = create_cache(path, wanted, CONSTANTS if "features" in wanted.identity.targets else None)
    for entry in manifest.identity.shards:
        for views, _ in missing_work(path, manifest, entry.name):
            write_views(path, manifest, entry.name, views, invalid=[1])
    finalise(path)


@dataclass(frozen=True)
class Step:
    """From one manifest to another. `states` of each shard that a reader may meet: views, and their targets."""

    before: Manifest | None
    after: Manifest
    states: dict[str, list[tuple[int, tuple[str, ...]]]]


BOTH = ("features", "logits")
ONE = Manifest(identity_of({SHARD: CLIPS}, features=True), 1)
STEPS = {
    "first_commit": Step(None, ONE, {SHARD: [(0, ()), (1, BOTH)]}),
    "growth": Step(ONE, replace(ONE, views=2), {SHARD: [(1, BOTH), (2, BOTH)]}),
    "another_target": Step(Manifest(identity_of({SHARD: CLIPS}), 1), ONE, {SHARD: [(1, ("logits",)), (1, BOTH)]}),
    "everything": Step(
        Manifest(identity_of({SHARD: CLIPS}), 1),
        Manifest(
            identity_of({NEW: CLIPS, SHARD: CLIPS}, features=True), 2
        ),  # which comes after the old one, all the same
        {SHARD: [(1, ("logits",)), (1, BOTH), (2, BOTH)], NEW: [(0, ()), (2, BOTH)]},
    ),
}


def finished(manifest: Manifest | None) -> tuple[int, int, tuple[str, ...]]:
    """What a manifest says of itself once `finalise` is through."""
    return (manifest.views, len(manifest.identity.shards), tuple(manifest.identity.targets)) if manifest else (0, 0, ())


def check(path: Path, step: Step) -> None:
    """Whoever reads now sees, of every shard, what it had before the step or more of it, all of it whole."""
    if not (path / "zarr.json").exists():
        assert step.before is None, "the manifest is gone"
        return
    manifest = load_manifest(path)
    says = (manifest.finalised, manifest.finalised_shards, manifest.finalised_targets)
    assert says in (finished(step.before), finished(step.after)), f"finished are {says}"
    reasons = {entry.name: {1: "no video stream"} for entry in manifest.identity.shards[: says[1]]}
    assert manifest.quarantine == reasons
    for i, entry in enumerate(manifest.identity.shards):
        group = load_group(path, entry.name)
        views, targets = (group["views"], tuple(sorted(group["targets"]))) if group else (0, ())
        assert (views, targets) in step.states[entry.name], f"{entry.name} has {views} views of {targets}"
        if i < says[1]:
            assert views >= says[0] and {*targets} >= {*says[2]}, f"{entry.name} has less than is finished"
        check_rows(CacheReader(path, targets), entry.name, views)


def check_rows(reader: CacheReader, shard: str, views: int) -> None:
    for view in range(views):
        block, wanted = reader.block(shard, view, 0), content(STEPS["everything"].after.identity, shard, view, [1])
        assert list(block.keys) == keys_of(shard, CLIPS)
        assert (block.frames == wanted["frames"]).all() and (block.valid == wanted["valid"]).all()
        assert abs(block.logits[0] - wanted["logits"][0]).max() < 0.02
        if "features" in reader.targets:
            assert (block.features[0] == wanted["features"][0].astype("float16")).all()
            assert (reader.constants()["classifier"] == CONSTANTS["classifier"]).all()


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


def killed(step: Step, path: Path, k: int) -> None:
    die_at(k)
    bring_to(path, step.after)


def state_of(path: Path) -> frozenset:
    """What a kill left, apart from the random names of zarr's unfinished files."""
    return frozenset((re.sub(r"[0-9a-f]{32}\.partial", "partial", name), d) for name, d in tree_of(path).items())


def aftermath(step: Step, path: Path, k: int, wanted: dict) -> list[str]:
    """What is wrong with the folder that a kill left behind, and with what the next runs make of it."""
    outcomes = [("read", in_child(check, path, step))]
    if k % 4 == 0:  # killed a second time, elsewhere, on the way to the end
        status, text = in_child(killed, step, path, 1 + k // 4)
        outcomes.append(("killed again", (0 if status == DIED else status, text)))
        outcomes.append(("read again", in_child(check, path, step)))
    outcomes.append(("rerun", in_child(bring_to, path, step.after)))
    wrong = [f"call {k}, {what}: {text}" for what, (status, text) in outcomes if status != 0]
    differing = sorted(wanted.items() ^ tree_of(path).items())
    return wrong + ([f"call {k}: the rerun ends in other files: {differing[:6]}"] if differing else [])


def run(name: str, folder: Path, stride: int) -> dict:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written: only a power cut would
    step, base, undisturbed, kills = STEPS[name], folder / "base", folder / "undisturbed", folder / "kills"
    if step.before:
        assert in_child(bring_to, base, step.before)[0] == 0
        shutil.copytree(base, undisturbed)
    status, calls = in_child(
        keep_what_kills_leave, lambda: bring_to(undisturbed, step.after), undisturbed, kills, stride
    )
    assert status == 0, calls
    wanted, wrong, seen = tree_of(undisturbed), [], set()
    for k in range(1, int(calls) + 1, stride):
        state = state_of(kills / str(k))
        if state not in seen:  # what follows depends on the folder alone, and an fsync changes nothing in it
            seen.add(state)
            wrong += aftermath(step, kills / str(k), k, wanted)
    in_order = load_manifest(undisturbed).identity  # new shards come last
    assert in_child(bring_to, folder / "whole", replace(step.after, identity=in_order))[0] == 0
    if tree_of(folder / "whole") != wanted:
        wrong.append("the undisturbed run ends in other files than a cache made at once")
    return {"calls": int(calls), "states": len(seen), "wrong": wrong}


RECORDED = [(0, 1.0, 3), (1, 2.0, 5), (1, 4.0, 7)]  # rank, forward seconds, clip·views


def counted_time(path: Path) -> tuple[float, int]:
    time = teacher_time_of(path, load_manifest(path).notes)
    return time.forward_seconds, time.clip_views


def run_on(path: Path, more: bool) -> tuple[float, int]:
    """The run after a kill, which may record more before it finalises. Returns the teacher time at the end."""
    if more:
        open_time_log(path, 0, 0.0)(8.0, 9)
    finalise(path)
    return counted_time(path)


def run_teacher_time(folder: Path) -> dict:
    base, kills = folder / "base", folder / "kills"
    create_cache(base, ONE, CONSTANTS)
    write_views(base, ONE, SHARD, range(1))
    for rank, seconds, clip_views in RECORDED:
        open_time_log(base, rank, 0.0)(seconds, clip_views)
    calls, wrong, states = int(in_child(keep_what_kills_leave, lambda: finalise(base), base, kills, 1)[1]), [], set()
    for k in range(1, calls + 1):
        left = kills / str(k)
        states.add((load_manifest(left).finalised, len(list(left.glob(".paid-*")))))
        seen = in_child(counted_time, left)[1]
        for more, wanted in ((False, (7.0, 15)), (True, (15.0, 24))):
            path = shutil.copytree(left, folder / f"{k}-{more}")
            ended = in_child(run_on, path, more)[1]
            if (seen, ended) != ("(7.0, 15)", str(wanted)) or list(path.glob(".paid-*")):
                wrong.append(f"call {k}, more {more}: {seen} seen, then {ended}, wanted {wanted}")
    return {"calls": calls, "states": len(states), "wrong": wrong}


if __name__ == "__main__":
    results = {}
    for asked in sys.argv[2:]:
        step, _, stride = asked.partition("=")
        where = Path(sys.argv[1]) / step
        where.mkdir()
        print(step, file=sys.stderr, flush=True)
        results[step] = run_teacher_time(where) if step == "teacher_time" else run(step, where, int(stride))
    print(json.dumps(results))
