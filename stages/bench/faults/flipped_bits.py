"""One bit is flipped in a file of each kind: it is found and named, and what the message says mends it."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.bench.faults.process import Ended, run, start
from stages.bench.faults.stages import OUTPUT, Stage, content, difference, new_folder, output_of, run_again


@dataclass(frozen=True)
class Kind:
    """A kind of file. `pattern`: of the files in the output of `stage`.

    `find(folder)` runs the command that reads the damaged output in `folder`, in FOUND. `mend(folder)` does what the message
    says, and returns what is wrong afterwards.
    """

    stage: str
    pattern: str
    find: Callable[[Path], Ended]
    mend: Callable[[Path], str | None]
    named: str = ""  # how the message names the file; by default by its own name
    wanted: Mapping[str, str] | None = None  # what the finder makes where the bit has no effect; None: it prints alone


FOUND = "found"  # the folder in which the finder runs


def kinds(root: Path, stages: Mapping[str, Stage]) -> dict[str, Kind]:
    """The kinds of files by name."""

    def reader(stage: str, of: str) -> Callable[[Path], Ended]:
        """Runs `stage` on the damaged output, in place of that of the stage `of`."""
        whole = str(output_of(root, of))

        def find(folder: Path) -> Ended:
            damaged = [text.replace(whole, str(folder / OUTPUT)) for text in stages[stage].arguments]
            return run(damaged, new_folder(folder / FOUND))

        return find

    def anew(stage: str) -> Callable[[Path], str | None]:
        """Delete the output, which is the same as a new folder, and run the stage again."""

        def mend(folder: Path) -> str | None:
            shutil.rmtree(folder / OUTPUT)
            return run_again(stages[stage], folder)

        return mend

    def verify(folder: Path) -> Ended:
        return run(["verify-cache", OUTPUT], folder)

    def repair(folder: Path) -> str | None:
        run(["verify-cache", OUTPUT, "--repair"], folder)
        return run_again(stages["cache-teacher"], folder)

    def resume(folder: Path) -> Ended:
        return run((*stages["train-student"].arguments, "--resume"), folder)

    def copy_again(folder: Path) -> str | None:
        shutil.copy(output_of(root, "train-student") / "last.safetensors", folder / OUTPUT)
        return difference(stages["train-student"], folder)

    wanted = {name: stage.content for name, stage in stages.items()}
    plain = {"find": reader("train-student", "prepare"), "mend": anew("prepare"), "wanted": wanted.get("train-student")}
    packed = "train-student from a pack"
    frames = {"find": reader(packed, "pack"), "mend": anew("pack"), "wanted": wanted.get(packed)}
    cached, shard = {"find": verify, "mend": repair}, "000000.tar"
    return {
        "a chunk of the cache": Kind("cache-teacher", f"{shard}/*/c.*", **cached),
        "attributes of a group": Kind("cache-teacher", f"{shard}/zarr.json", **cached, named=shard),
        "metadata of an array": Kind("cache-teacher", f"{shard}/*/zarr.json", **cached, named=shard),
        "the cache's manifest": Kind("cache-teacher", "zarr.json", verify, anew("cache-teacher"), named=OUTPUT),
        "the cache's constants": Kind("cache-teacher", "basis/c*", verify, repair),
        "a tar": Kind("prepare", shard, **plain),
        "its rows": Kind("prepare", f"{shard}.rows.json", **plain),
        "the index": Kind("prepare", "index.json", **plain),
        "a pack's tar": Kind("pack", shard, **frames),
        "its rows in the pack": Kind("pack", f"{shard}.rows.json", **frames),
        "pack.json": Kind("pack", "pack.json", **frames),
        "a checkpoint": Kind("train-student", "last.safetensors", reader("evaluate", "train-student"), copy_again,
                             wanted=wanted.get("evaluate")),
        "the state of a run": Kind("stopped", "last.pt", resume, anew("train-student")),
    }  # fmt: skip


def stop_a_run(root: Path, stage: Stage) -> None:
    """Leave a training behind that was stopped: root/stopped/OUTPUT."""
    folder = new_folder(root / "stopped")
    command = start((*stage.arguments, "--set", "checkpoint_every=1"), folder)
    while (ended := command.ended()) is None and not (folder / OUTPUT / "last.pt").exists():
        time.sleep(0.002)
    if ended is None:
        command.send(signal.SIGTERM, group=False)
        ended = command.wait()
    if ended.status != 128 + signal.SIGTERM:
        raise RuntimeError(f"a training that is stopped ends with {ended.status}: {ended.text}")


def flipped(folder: Path, root: Path, stages: Mapping[str, Stage], name: str, times: int) -> Iterator[str | None]:
    """Flip a random bit of a random file of the kind `name`, in a copy of an undisturbed output."""
    chance, kind = random.Random(name), kinds(root, stages)[name]
    whole = output_of(root, kind.stage)
    for _ in range(times):
        new_folder(folder)
        shutil.copytree(whole, folder / OUTPUT)
        file = chance.choice(sorted((folder / OUTPUT).glob(kind.pattern)))
        data = bytearray(file.read_bytes())
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        data[place] ^= 1 << bit
        file.write_bytes(data)
        fault = _answer(folder, kind, file)
        yield fault and f"{file.relative_to(folder / OUTPUT)}, bit {bit} of byte {place} of {len(data)}: {fault}"


def _answer(folder: Path, kind: Kind, file: Path) -> str | None:
    ended = kind.find(folder)
    if ended.status == 0:
        text = " ".join(ended.text.split())
        if file.name in text and "bytes of other content" in text:
            return None  # the clip is left out, by name
        if kind.wanted is None:
            return "not found"
        differing = {name for name, _ in kind.wanted.items() ^ content(folder / FOUND / OUTPUT).items()}
        differing = {
            name for name in differing if name.endswith((".safetensors", ".jsonl", ".csv"))
        }  # others have paths
        return f"not found, and {min(differing)} is another" if differing else None  # the bit means nothing
    return ended.fault(kind.named or file.name) or kind.mend(folder)
