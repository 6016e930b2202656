"""What a data set is made of: its clips, and what is known to be missing, unlisted or odd before any video is opened."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.prepare.annotations import Clip, file_size
from stages.prepare.lists import Entry
from stages.prepare.lookup import agree, find_videos, resolve

Line = dict[str, Any]  # of quarantine.jsonl or report.jsonl: path, kind, reason, and more


@dataclass(frozen=True)
class Listing:
    """`clips`: what is listed, absent ones too; `labels`: all that are listed, and where: classes don't depend on which
    videos are there; `names`: labels are names even where they look like integers; `quarantine`, `report`: lines of
    these files that are known already.
    """

    clips: list[Clip]
    labels: dict[str, str]
    names: bool
    quarantine: list[Line] = field(default_factory=list)
    report: list[Line] = field(default_factory=list)


def all_labels(items: Iterable[Clip | Entry]) -> dict[str, str]:
    """Each label of the items, with the first place where it is listed."""
    labels = {}
    for item in items:
        for label in item.labels:
            labels.setdefault(label, item.where)
    return labels


def find_clips(entries: Sequence[Entry], folder: Path, skip: Path, listed_in: str, *, names: bool) -> Listing:
    """Each entry with its video below `folder`; where only the whole video is there, the clip is a part of it.

    Videos without an entry are quarantined as not listed in `listed_in`; one that has the name of an entry, but lies
    in a folder that the entry contradicts, is taken and reported.
    """
    videos = find_videos(folder, skip)
    found = resolve(videos, [entry.names for entry in entries])
    rest = [i for i, entry in enumerate(entries) if not found[i] and entry.whole]
    wholes = dict(zip(rest, resolve(videos, [(entries[i].whole,) for i in rest]), strict=True))
    clips: dict[str, Clip] = {}
    quarantine, report = [], []
    for i, entry in enumerate(entries):
        part = bool(wholes.get(i))
        fits = wholes[i] if part else found[i]
        name = fits[0] if fits else entry.names[0]
        path, times = folder / name, (entry.start, entry.end) if part else (None, None)
        clip = Clip(name, path, file_size(path) if fits else None, entry.labels, entry.where, *times)
        if fault := ambiguous(entry, fits) or _fault(clip, clips):
            quarantine.append(fault)
        else:
            clips[clip.identity] = clip
            report += [] if part or not fits else elsewhere(entry, name)
    used = {name for fits in (*found, *wholes.values()) for name in fits}
    quarantine += unlisted(sorted(videos.names - used), listed_in)
    return Listing(list(clips.values()), all_labels(entries), names, quarantine, report)


def _fault(clip: Clip, before: Mapping[str, Clip]) -> Line | None:
    if clip.start is not None and not 0 <= clip.start < clip.end:
        return {"path": clip.name, "kind": "range", "reason": f"from {clip.start:g} to {clip.end:g} s ({clip.where})"}
    return twice(clip, before)


def ambiguous(entry: Entry, fits: Sequence[str]) -> Line | None:
    """The line of quarantine.jsonl for an entry that several files fit."""
    if len(fits) < 2:
        return None
    reason = f"may be {' or '.join(fits)} ({entry.where}): move the others away, or list their folders too"
    return {"path": entry.names[0], "kind": "ambiguous", "reason": reason}


def elsewhere(entry: Entry, name: str) -> list[Line]:
    """The line of report.jsonl for what was found by its name alone, in another folder than the list's."""
    if any(agree(listed, name) for listed in entry.names):
        return []
    reason = f"taken for {entry.names[0]}, which isn't there, by its name alone ({entry.where}): is it the same?"
    return [{"path": name, "kind": "elsewhere", "reason": reason}]


def twice(clip: Clip, before: Mapping[str, Clip]) -> Line | None:
    """The line of quarantine.jsonl for a clip that has been listed already; the first one stays."""
    first = before.get(clip.identity)
    if first is None:
        return None
    other = "" if clip.labels == first.labels else f", there with {list(first.labels)}, here with {list(clip.labels)}"
    reason = f"listed twice: {first.where}, and {clip.where}{other}"
    return {"path": clip.name, "kind": "twice", "reason": reason}


def unlisted(names: Sequence[str], listed_in: str) -> list[Line]:
    """Lines of quarantine.jsonl for what is there, but not in the annotations."""
    return [{"path": name, "kind": "unlisted", "reason": f"not listed in {listed_in}"} for name in names]
