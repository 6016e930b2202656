"""Full disks, and outputs that can't be written or vanish."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from stages.bench.faults.process import in_fork, run, start
from stages.bench.faults.stages import OUTPUT, Stage, difference, new_folder, run_again

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000  # flags of unshare(2)
ROOM = "64m"
ATTEMPTS = 10


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a tmpfs in a namespace of its own."""
    try:
        return in_fork(_mount, new_folder(folder), "64k") == ""
    except RuntimeError:
        return False


def full_disk(folder: Path, stage: Stage, size: int, times: int) -> Iterator[str | None]:
    """The disk has less room than the output's `size` in bytes, by chance. Then it has room, and a rerun ends alike."""
    chance = random.Random(stage.name)
    for _ in range(times):
        for _ in range(ATTEMPTS):  # a small output has room wherever a page is
            text = in_fork(_fill, new_folder(folder), stage, f"{int(size * chance.uniform(0.02, 0.98) / 1024) + 4}k")
            if text != "there was room":
                yield text or None
                break


def _fill(folder: Path, stage: Stage, room: str) -> str:
    _mount(folder, room)
    ended = run(stage.arguments, folder)
    if ended.status == 0:
        return "there was room"
    if fault := ended.fault(OUTPUT):
        return f"{room}: {fault}"
    subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(folder)], check=True)
    fault = run_again(stage, folder)
    return f"{room}: {fault}" if fault else ""


def read_only(folder: Path, stage: Stage) -> Iterator[str | None]:
    """The output lies on a disk that can't be written to."""
    yield in_fork(_refuse_writes, new_folder(folder), stage) or None


def _refuse_writes(folder: Path, stage: Stage) -> str:
    _mount(folder, ROOM)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    return run(stage.arguments, folder).fault(OUTPUT) or ""


def vanishing(folder: Path, stage: Stage, times: int) -> Iterator[str | None]:
    """The output's folder is moved away while the command is at work."""
    chance = random.Random(stage.name)
    for _ in range(times):
        vanished, ended = False, None
        while not vanished:
            command = start(stage.arguments, new_folder(folder))
            time.sleep(chance.uniform(0.1, 0.9) * stage.seconds)
            ended = command.ended()
            if ended is None and (folder / OUTPUT).exists():
                os.rename(folder / OUTPUT, folder / "elsewhere")
                vanished = True
            ended = ended or command.wait()
        # The folder may have been made again, with all that belongs in it.
        yield difference(stage, folder) if ended.status == 0 else ended.fault(OUTPUT)


def _mount(folder: Path, size: str) -> str:
    """Mount a tmpfs on `folder` in a namespace that ends with this process and its forks. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    flags = NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    for arguments in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]):
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    return ""


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def has_mount() -> bool:
    return shutil.which("mount") is not None and hasattr(ctypes.CDLL(None), "unshare")
