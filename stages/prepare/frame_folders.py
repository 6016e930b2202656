"""Rawframe lists: which folders hold the pictures of a clip, how their files are called, and which of them are there."""

import re
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.annotations import Clip, Frames, walk
from stages.prepare.listing import Listing, all_labels, ambiguous, elsewhere, twice, unlisted
from stages.prepare.lists import Entry, frames_entries
from stages.prepare.lookup import Names, resolve

# As mmaction2's and AR-Net's tools name them, the likelier first.
TEMPLATES = tuple(f"{stem}_%05d.{ext}" for stem in ("img", "image") for ext in ("jpg", "png"))
FPS = 25.0


@dataclass(frozen=True)
class FrameFolder:
    """A folder of pictures: `template % i` is there for each i of `numbers`."""

    template: str
    numbers: range | frozenset[int]


def list_frames(
    file: Path, folder: Path, skip: Path, *, template: str | None, fps: float, with_offset: bool
) -> Listing:
    """The clips of a rawframe list, each a folder below `folder` or a part of one.

    `template`: of the files' names, `img_%05d.jpg` or `img_{:05}.jpg`; those of TEMPLATES are tried where it is None.
    Frames count from 1, or from 0 where there is a picture of that number. A folder that lacks listed frames is
    quarantined; of one that has more than its clip takes, without offsets, the rest is reported.
    """
    entries = frames_entries(file, with_offset=with_offset)
    templates = [_percent(template)] if template else list(TEMPLATES)
    folders = find_folders(folder, skip, templates)
    found = resolve(Names(folder, folders), [entry.names for entry in entries])
    clips: dict[str, Clip] = {}
    quarantine, report = [], []
    for entry, fits in zip(entries, found, strict=True):
        if several := ambiguous(entry, fits):
            quarantine.append(several)
            continue
        name = fits[0] if fits else entry.names[0]
        kinds = folders.get(name, [])
        if fault := _fault(entry, kinds, templates, folder / name):
            kind = "frames" if kinds else "absent"
            quarantine.append({"path": name, "kind": kind, "reason": f"{fault} ({entry.where})"})
            continue
        clip = _clip(entry, name, folder / name, kinds[0], fps)
        if again := twice(clip, clips):
            quarantine.append(again)
            continue
        clips[clip.identity] = clip
        report += elsewhere(entry, name)
        if not with_offset and (more := len(kinds[0].numbers) - entry.total) > 0:
            reason = f"{more} frames more than the {entry.total} that are listed are left out ({entry.where})"
            report.append({"path": name, "kind": "frames", "reason": reason})
    quarantine += unlisted(sorted(folders.keys() - {name for fits in found for name in fits}), file.name)
    return Listing(list(clips.values()), all_labels(entries), False, quarantine, report)


def find_folders(folder: Path, skip: Path, templates: list[str]) -> dict[str, list[FrameFolder]]:
    """name below `folder` -> its pictures, for each template that some of its files have."""
    patterns = {template: _pattern(template) for template in templates}
    found = {}
    for here, names in walk(folder, skip):
        kinds = []
        for template, pattern in patterns.items():
            numbers = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
            if numbers:
                kinds.append(FrameFolder(template, _compact(numbers)))
        if kinds:
            found[here.relative_to(folder).as_posix()] = kinds
    return found


def _fault(entry: Entry, kinds: list[FrameFolder], templates: list[str], path: Path) -> str | None:
    """Why the pictures of a folder aren't those of the entry."""
    if not kinds:
        return (
            f"no picture called {' or '.join(templates)}: give --frame-template" if path.is_dir() else "no such folder"
        )
    if len(kinds) > 1:
        return f"both {kinds[0].template} and {kinds[1].template} are there: give --frame-template"
    first = _first(entry, kinds[0])
    if entry.total < 1 or first < 0:
        return f"{entry.total} frames from {entry.offset or 0} on"
    missing = [i for i in range(first, first + entry.total) if i not in kinds[0].numbers]
    if missing:
        return f"{kinds[0].template % missing[0]} is missing, as {len(missing)} of {entry.total} frames are"
    return None


def _clip(entry: Entry, name: str, path: Path, kind: FrameFolder, fps: float) -> Clip:
    frames = Frames(kind.template, _first(entry, kind), entry.total, fps, entry.offset)
    return Clip(name, path, _estimate(path, frames), entry.labels, entry.where, frames=frames)


def _first(entry: Entry, kind: FrameFolder) -> int:
    return (0 if 0 in kind.numbers else 1) + (entry.offset or 0)


def _estimate(folder: Path, frames: Frames) -> int:
    """Bytes of all pictures, by the first, the middle and the last: looking at each takes hours on network disks."""
    numbers = sorted({frames.first + i for i in (0, frames.count // 2, frames.count - 1)})
    return sum((folder / (frames.template % i)).stat().st_size for i in numbers) * frames.count // len(numbers)


def _percent(template: str) -> str:
    """`img_{:05}.jpg` -> `img_%05d.jpg`."""
    found = re.sub(r"\{:?0?(\d*)d?\}", r"%0\1d", template).replace("%0d", "%d")
    if not re.fullmatch(r"[^%/{}]*%(0\d+)?d[^%/{}]*", found):
        raise ReskdError(f"--frame-template {template}: expected a file name with one number, as img_%05d.jpg")
    return found


def _pattern(template: str) -> re.Pattern:
    before, digits, after = re.fullmatch(r"([^%]*)%0?(\d*)d([^%]*)", template).groups()
    # Numbers are not cut: %05d of 123456 has six digits. Fewer than five, or six that begin with 0, are other names.
    number = rf"(\d{{{digits}}}|[1-9]\d{{{digits},}})" if digits else r"(0|[1-9]\d*)"
    return re.compile(re.escape(before) + number + re.escape(after))


def _compact(numbers: set[int]) -> range | frozenset[int]:
    low, high = min(numbers), max(numbers)
    return range(low, high + 1) if high - low + 1 == len(numbers) else frozenset(numbers)
