"""Lists of frame folders (rawframes): which folder holds the pictures of a clip, and whether all of them exist."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.annotation_files import Annotation, rawframes_annotations
from stages.prepare.clip_list import ClipList, all_labels, ambiguous_line, elsewhere_lines, twice_line, unlisted_lines
from stages.prepare.clips import Clip, Frames
from stages.prepare.path_index import PathIndex, match_paths
from stages.shards.file_tree import walk

# The file names of mmaction2's and AR-Net's tools, the more likely first.
TEMPLATES = tuple(f"{stem}_%05d.{ext}" for stem in ("img", "image") for ext in ("jpg", "png"))
FPS = 25.0


@dataclass(frozen=True)
class FrameFolder:
    """The pictures of a folder with one form of names: `template % i` exists for each i in `numbers`."""

    template: str
    numbers: range | frozenset[int]


def list_frame_folders(
    file: Path, folder: Path, skip: Path, *, template: str | None, fps: float, with_offset: bool
) -> ClipList:
    """The clips of a rawframe list. Each is a folder below `folder`, or a part of one.

    `template`: the form of the files' names, `img_%05d.jpg` or `img_{:05}.jpg`; None: those of TEMPLATES are tried.
    Frames count from 1, or from 0 if a picture has the number 0. A folder that lacks listed frames is quarantined.
    If the list has no offsets, frames beyond those of the clip are reported.
    """
    annotations = rawframes_annotations(file, with_offset=with_offset)
    templates = [_percent_template(template)] if template else list(TEMPLATES)
    folders = find_frame_folders(folder, skip, templates)
    all_matches = match_paths(PathIndex(folder, folders), [annotation.paths for annotation in annotations])
    clips: dict[str, Clip] = {}
    quarantine, report = [], []
    for annotation, matches in zip(annotations, all_matches, strict=True):
        if ambiguous := ambiguous_line(annotation, matches):
            quarantine.append(ambiguous)
            continue
        name = matches[0] if matches else annotation.paths[0]
        pictures = folders.get(name, [])
        if fault := _fault(annotation, pictures, templates, folder / name):
            kind = "frames" if pictures else "absent"
            quarantine.append({"path": name, "kind": kind, "reason": f"{fault} ({annotation.where})"})
            continue
        clip = _clip(annotation, name, folder / name, pictures[0], fps)
        if twice := twice_line(clip, clips):
            quarantine.append(twice)
            continue
        clips[clip.identity] = clip
        report += elsewhere_lines(annotation, name)
        if not with_offset and (surplus := len(pictures[0].numbers) - annotation.total) > 0:
            reason = (
                f"{surplus} frames more than the {annotation.total} that are listed are left out ({annotation.where})"
            )
            report.append({"path": name, "kind": "frames", "reason": reason})
    used = {path for matches in all_matches for path in matches}
    quarantine += unlisted_lines(sorted(folders.keys() - used), file.name)
    return ClipList(list(clips.values()), all_labels(annotations), False, quarantine, report)


def find_frame_folders(folder: Path, skip: Path, templates: list[str]) -> dict[str, list[FrameFolder]]:
    """Path below `folder` -> its pictures, one FrameFolder for each template that some of its files have."""
    patterns = {template: _file_pattern(template) for template in templates}
    found = {}
    for parent, names in walk(folder, skip):
        pictures = []
        for template, pattern in patterns.items():
            numbers = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
            if numbers:
                pictures.append(FrameFolder(template, _compact(numbers)))
        if pictures:
            found[parent.relative_to(folder).as_posix()] = pictures
    return found


def _fault(annotation: Annotation, pictures: list[FrameFolder], templates: list[str], path: Path) -> str | None:
    """Why the folder `path` doesn't hold the pictures of the annotation; None if it does."""
    if not pictures:
        return (
            f"no picture called {' or '.join(templates)}: give --frame-template"
            if os.path.isdir(path)
            else "no such folder"
        )
    if len(pictures) > 1:
        return f"has both {pictures[0].template} and {pictures[1].template}: give --frame-template"
    first = _first_number(annotation, pictures[0])
    if annotation.total < 1 or first < 0:
        return f"{annotation.total} frames from {annotation.offset or 0} on"
    numbers, wanted = pictures[0].numbers, range(first, first + annotation.total)
    if missing := annotation.total - sum(i in wanted for i in numbers):  # the list may claim any total
        lacking = next(i for i in wanted if i not in numbers)
        return f"{missing} of {annotation.total} frames are missing, the first is {pictures[0].template % lacking}"
    return None


def _clip(annotation: Annotation, name: str, path: Path, pictures: FrameFolder, fps: float) -> Clip:
    first = _first_number(annotation, pictures)
    frames = Frames(pictures.template, first, annotation.total, fps, annotation.offset)
    return Clip(name, path, _estimated_bytes(path, frames), annotation.labels, annotation.where, frames=frames)


def _first_number(annotation: Annotation, pictures: FrameFolder) -> int:
    return (0 if 0 in pictures.numbers else 1) + (annotation.offset or 0)


def _estimated_bytes(folder: Path, frames: Frames) -> int:
    """Bytes of all pictures, estimated from three of them: to ask for all sizes takes hours on network disks."""
    numbers = sorted({frames.first + i for i in (0, frames.count // 2, frames.count - 1)})
    return sum((folder / (frames.template % i)).stat().st_size for i in numbers) * frames.count // len(numbers)


def _percent_template(template: str) -> str:
    """`img_{:05}.jpg` -> `img_%05d.jpg`. Raises ReskdError for a template without exactly one number."""
    result = re.sub(r"\{:?0?(\d*)d?\}", r"%0\1d", template).replace("%0d", "%d")
    if not re.fullmatch(r"[^%/{}]*%(0\d+)?d[^%/{}]*", result):
        raise ReskdError(f"--frame-template {template}: expected a file name with one number, such as img_%05d.jpg")
    return result


def _file_pattern(template: str) -> re.Pattern:
    """Matches the file names of a template; group 1 is the number."""
    before, digits, after = re.fullmatch(r"([^%]*)%0?(\d*)d([^%]*)", template).groups()
    # %05d gives 123456 six digits. No number has fewer than five digits, or six digits and a leading 0.
    number = rf"(\d{{{digits}}}|[1-9]\d{{{digits},}})" if digits else r"(0|[1-9]\d*)"
    return re.compile(re.escape(before) + number + re.escape(after))


def _compact(numbers: set[int]) -> range | frozenset[int]:
    low, high = min(numbers), max(numbers)
    return range(low, high + 1) if high - low + 1 == len(numbers) else frozenset(numbers)
