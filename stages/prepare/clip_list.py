"""The clips of a source, and the lines of quarantine.jsonl and report.jsonl that are known before a video is opened."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.prepare.annotation_files import Annotation
from stages.prepare.clips import Clip
from stages.prepare.folders import file_size
from stages.prepare.path_index import index_videos, match_paths, same_ending

Line = dict[str, Any]  # of quarantine.jsonl or report.jsonl: path, kind, reason, and more


@dataclass(frozen=True)
class ClipList:
    """All listed clips, and the lines of quarantine.jsonl and report.jsonl that are known already."""

    clips: list[Clip]  # those without a file too
    labels: dict[str, str]  # label -> its first place; all listed labels, so classes don't depend on existing files
    labels_are_names: bool  # even if they look like integers
    quarantine: list[Line] = field(default_factory=list)
    report: list[Line] = field(default_factory=list)


def all_labels(items: Iterable[Clip | Annotation]) -> dict[str, str]:
    """Each label of the items, with the first place where it is listed."""
    labels = {}
    for item in items:
        for label in item.labels:
            labels.setdefault(label, item.where)
    return labels


def find_clips(
    annotations: Sequence[Annotation], folder: Path, skip: Path, listed_in: str, *, labels_are_names: bool
) -> ClipList:
    """The clip of each annotation, found below `folder`. If only the whole video exists, the clip is a part of it.

    A video without an annotation is quarantined as not listed in `listed_in`. A video that has the name of an
    annotation, but lies in a folder that contradicts the annotation, is taken and reported.
    """
    index = index_videos(folder, skip)
    cut_matches = match_paths(index, [annotation.paths for annotation in annotations])
    uncut = [i for i, annotation in enumerate(annotations) if not cut_matches[i] and annotation.whole]
    whole_matches = dict(zip(uncut, match_paths(index, [(annotations[i].whole,) for i in uncut]), strict=True))
    clips: dict[str, Clip] = {}
    quarantine, report = [], []
    for i, annotation in enumerate(annotations):
        is_part = bool(whole_matches.get(i))
        matches = whole_matches[i] if is_part else cut_matches[i]
        name = matches[0] if matches else annotation.paths[0]
        path, times = folder / name, (annotation.start, annotation.end) if is_part else (None, None)
        size = file_size(path) if matches else None
        clip = Clip(name, path, size, annotation.labels, annotation.where, *times)
        if fault := ambiguous_line(annotation, matches) or _range_line(clip) or twice_line(clip, clips):
            quarantine.append(fault)
        else:
            clips[clip.identity] = clip
            report += [] if is_part or not matches else elsewhere_lines(annotation, name)
    used = {path for matches in (*cut_matches, *whole_matches.values()) for path in matches}
    quarantine += unlisted_lines(sorted(index.paths - used), listed_in)
    return ClipList(list(clips.values()), all_labels(annotations), labels_are_names, quarantine, report)


def _range_line(clip: Clip) -> Line | None:
    """The line of quarantine.jsonl for a part that has no length or begins before 0."""
    if clip.start is None or 0 <= clip.start < clip.end:
        return None
    return {"path": clip.name, "kind": "range", "reason": f"from {clip.start:g} to {clip.end:g} s ({clip.where})"}


def ambiguous_line(annotation: Annotation, matches: Sequence[str]) -> Line | None:
    """The line of quarantine.jsonl for an annotation that several files match."""
    if len(matches) < 2:
        return None
    reason = f"may be {' or '.join(matches)} ({annotation.where}): move the others away, or list their folders too"
    return {"path": annotation.paths[0], "kind": "ambiguous", "reason": reason}


def elsewhere_lines(annotation: Annotation, name: str) -> list[Line]:
    """The line of report.jsonl for a file that has the listed name, but lies in another folder; else none."""
    if any(same_ending(listed, name) for listed in annotation.paths):
        return []
    reason = (f"taken for {annotation.paths[0]}, which doesn't exist, because of its name ({annotation.where}): check "
              "that they are the same")  # fmt: skip
    return [{"path": name, "kind": "elsewhere", "reason": reason}]


def twice_line(clip: Clip, earlier: Mapping[str, Clip]) -> Line | None:
    """The line of quarantine.jsonl for a clip that is in `earlier` (identity -> clip) already; the earlier one stays."""
    first = earlier.get(clip.identity)
    if first is None:
        return None
    reason = f"listed twice: {first.where}, and {clip.where}"
    if clip.labels != first.labels:
        reason += f"; the first has the labels {list(first.labels)}, the second {list(clip.labels)}"
    return {"path": clip.name, "kind": "twice", "reason": reason}


def unlisted_lines(names: Sequence[str], listed_in: str) -> list[Line]:
    """Lines of quarantine.jsonl for files or folders that the annotations don't list."""
    return [{"path": name, "kind": "unlisted", "reason": f"not listed in {listed_in}"} for name in names]
