"""The source of `prepare`: a folder of videos, a CSV, published annotations, or tars; and all that decides the output's
bytes.
"""

import difflib
import hashlib
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import check_shard_names
from stages.prepare.clip_list import ClipList, Line, all_labels, unlisted_lines
from stages.prepare.clips import Clip
from stages.prepare.csv_list import list_csv
from stages.prepare.encode_frames import encoder_identity
from stages.prepare.folders import list_videos
from stages.prepare.frame_folders import FPS, list_frame_folders
from stages.prepare.output import folder_of
from stages.prepare.path_index import index_videos
from stages.prepare.publishers import NAMES, list_published
from stages.prepare.tars_at_url import list_tars
from stages.remote.url_path import Location, UrlPath
from stages.shards.file_tree import extension, list_files
from stages.shards.index import dump
from stages.shards.tar_scan import VIDEO_EXTENSIONS
from stages.video.decode import decoder_identity

RAWFRAMES_OPTIONS = ("with_offset", "frame_template", "fps")
FORMAT = 2  # of a data set's content; raised when a version of reskd makes other bytes from the same source


@dataclass(frozen=True)
class AnnotationOptions:
    """How the videos of a source are annotated. `read_source` checks which options go with the source."""

    annotations: Path | None = None
    videos: Path | None = None
    split: str | None = None
    with_offset: bool = False
    frame_template: str | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Source:
    """What `prepare` makes a data set from: videos or tars."""

    clip_list: ClipList  # clips whose files exist; none if the source is tars
    tars: dict[str, int]  # names relative to the source, sorted -> bytes
    base: str  # the folder of the tars, relative to the output
    arguments: dict[str, Any]  # they decide every byte of the output


def read_source(
    source: Location,
    output: Location,
    annotated: AnnotationOptions,
    options: Mapping[str, Any],
    order: Sequence[str] | None,
) -> Source:
    """Finds out what the source is, and lists its clips or tars. `order`: class names in the order of their numbers.

    Raises ReskdError for a source of no known kind, for options that don't go with it, and if no listed clip exists.
    """
    name = published_name(source, annotated)
    _check_options(source, name, annotated)
    clip_list, tars, kind = _read_kind(source, output, name, annotated)
    content, base = _content(clip_list), "."
    if tars:
        check_shard_names(list(tars))
        if options["limit"] is not None:
            raise ReskdError(f"{source}: --limit {options['limit']} takes a part of the clips, but tars are indexed as a "
                             "whole. Leave it out")  # fmt: skip
        content, options = sorted(tars.items()), {}
        base = _relative(source, output)
    digest = hashlib.sha256(dump([content, sorted(clip_list.labels)])).hexdigest()
    arguments = {"format": FORMAT, "source": kind, "base": base, "items": len(content), "listing": digest, **options,
                 "classes": list(order) if order else None, "decoder": decoder_identity(),
                 "encoder": encoder_identity() if name == "rawframes" else None}  # fmt: skip
    existing = _existing_clips(clip_list)
    if not existing.clips and not tars:
        raise _no_clip_error(existing, annotated.annotations or source, annotated.videos or source)
    return Source(existing, dict(sorted(tars.items())), base, arguments)


def _relative(folder: Location, start: Location) -> str:
    """The path of a folder from another one. Raises ReskdError if they aren't on one machine, or in one bucket."""
    if isinstance(folder, Path) and isinstance(start, Path):
        return Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()
    if isinstance(folder, Path):
        raise ReskdError(f"{folder}: tars of this machine, and an index at {start} can't name them. Copy the tars to {start}, "
                         f"and give that as the source, too; or give a folder as the output")  # fmt: skip
    if isinstance(start, Path) or folder.root != start.root:
        raise ReskdError(f"{start}: an index there can't name the tars at {folder}. Give a URL of the same bucket as the "
                         f"output, such as {folder}")  # fmt: skip
    return posixpath.relpath(f"/{folder.key}", f"/{start.key}")


def published_name(source: Location, annotated: AnnotationOptions) -> str | None:
    """The publisher's format that `source` names, if annotations are given or no file has that name; else None."""
    return str(source) if str(source) in NAMES and (annotated.annotations is not None or not source.exists()) else None


def _read_kind(
    source: Location, output: Location, name: str | None, annotated: AnnotationOptions
) -> tuple[ClipList, dict[str, int], str]:
    """The clips of the source, or its tars (name -> bytes), and the kind of the source as prepare.json calls it."""
    if isinstance(source, UrlPath):
        return _clip_list([], labels_are_names=True), list_tars(source, output), "tar shards"
    output = folder_of(output)  # is skipped, if it lies below the source
    if name is not None:
        return _list_by_format(name, output, annotated), {}, name
    if source.is_file() and annotated.annotations is None:
        return _clip_list(list_csv(source, source.parent), labels_are_names=False), {}, "CSV"
    if not source.is_dir():
        raise ReskdError(f"{source}: not a folder. Give the folder of the videos that {annotated.annotations} lists")
    if annotated.annotations is not None:
        clip_list = _clip_list(list_csv(annotated.annotations, source), labels_are_names=False)
        others = index_videos(source, output).paths - {clip.name for clip in clip_list.clips}
        lines = unlisted_lines(sorted(others), annotated.annotations.name)
        return replace(clip_list, quarantine=lines), {}, "CSV"
    files = list_files(source, output)
    clip_list = _clip_list(list_videos(source, files), labels_are_names=True)
    tars = {path.relative_to(source).as_posix(): path.stat().st_size for path in files if path.suffix == ".tar"}
    if bool(clip_list.clips) == bool(tars):
        content = (f"both videos ({clip_list.clips[0].name}) and tars ({next(iter(tars))})" if tars
                   else "neither videos nor tars")  # fmt: skip
        raise ReskdError(f"{source}: {content} in it. Give a folder of videos or a folder of tars; known as videos: "
                         f"{', '.join(sorted(VIDEO_EXTENSIONS))}")  # fmt: skip
    return clip_list, tars, "tar shards" if tars else "folder of videos"


def _check_options(source: Location, name: str | None, annotated: AnnotationOptions) -> None:
    """`name`: the published format, or None. Raises ReskdError for a missing path, and for options of other formats."""
    if name is not None:
        missing = next((option for option in ("annotations", "videos") if getattr(annotated, option) is None), None)
        if missing:
            raise ReskdError(f"{name}: --{missing} is missing. Give the annotations as published, --annotations FILE, "
                             f"and the folder --videos DIR. If you mean a folder called {name}, give its whole path")  # fmt: skip
        if not annotated.annotations.is_file() or not annotated.videos.is_dir():
            has_file = annotated.annotations.is_file()
            raise ReskdError(
                f"{annotated.videos}: no such folder" if has_file else f"{annotated.annotations}: no such file"
            )
    elif isinstance(source, Path) and not source.exists():
        similar = difflib.get_close_matches(str(source), NAMES, n=1)
        raise ReskdError(f"{source}: no such folder.{f' Did you mean {similar[0]!r}?' if similar else ''} Give a folder of "
                         f"videos or of tar shards, a CSV, or one of {', '.join(NAMES)} with --annotations and "
                         "--videos")  # fmt: skip
    if isinstance(source, UrlPath) and annotated.annotations is not None:
        raise ReskdError(f"{source}: --annotations goes with videos in a folder; at a URL only tar shards are read. Copy the "
                         "videos into a folder")  # fmt: skip
    for option in (field.name for field in fields(annotated)):
        formats = (
            ("rawframes",) if option in RAWFRAMES_OPTIONS else NAMES if option != "split" else ("kinetics", "actnet")
        )
        if getattr(annotated, option) not in (None, False) and name not in formats and option != "annotations":
            raise ReskdError(f"--{option.replace('_', '-')} goes with {' or '.join(formats)}, not with {source}. Leave it "
                             "out")  # fmt: skip


def _list_by_format(name: str, output: Path, annotated: AnnotationOptions) -> ClipList:
    file, videos = annotated.annotations, annotated.videos
    if name != "rawframes":
        return list_published(name, file, videos, output, annotated.split)
    return list_frame_folders(file, videos, output, template=annotated.frame_template, fps=annotated.fps or FPS,
                              with_offset=annotated.with_offset)  # fmt: skip


def _clip_list(clips: list[Clip], *, labels_are_names: bool) -> ClipList:
    return ClipList(clips, all_labels(clips), labels_are_names)


def _content(clip_list: ClipList) -> list[Any]:
    """All of the list that decides the output's bytes. Paths of this machine are not in it."""
    clips = [[clip.identity, clip.size, clip.labels, clip.start, clip.end,
              clip.frames and [clip.frames.template, clip.frames.first, clip.frames.fps]]
             for clip in clip_list.clips]  # fmt: skip
    return clips + [[line["path"], line["kind"]] for line in clip_list.quarantine + clip_list.report]


def _existing_clips(clip_list: ClipList) -> ClipList:
    """The list with only the clips whose files exist. For the other clips it has lines of quarantine.jsonl."""
    lines = {i: line for i, clip in enumerate(clip_list.clips) if (line := _absent_line(clip))}
    clips = [clip for i, clip in enumerate(clip_list.clips) if i not in lines]
    return replace(clip_list, clips=clips, quarantine=clip_list.quarantine + list(lines.values()))


def _absent_line(clip: Clip) -> Line | None:
    """The line of quarantine.jsonl for a clip without a file, or whose file isn't a video by its extension."""
    if clip.size is None:
        is_outside = clip.name.startswith(("/", "../")) and os.path.isfile(clip.path)
        reason = "it lies outside the folder of the videos" if is_outside else "no such file"
        return {"path": clip.name, "kind": "absent", "reason": f"{reason} ({clip.where})"}
    if clip.frames is None and extension(clip.name) not in VIDEO_EXTENSIONS:
        known = ", ".join(sorted(VIDEO_EXTENSIONS))
        reason = f"not a video by its extension ({clip.where}); known: {known}"
        return {"path": clip.name, "kind": "extension", "reason": reason}
    return None


def _no_clip_error(clip_list: ClipList, annotations: Path, videos: Path) -> ReskdError:
    """The error if no listed clip exists. The cause is nearly always a wrong folder or a wrong NAME."""
    unlisted = [line["path"] for line in clip_list.quarantine if line["kind"] == "unlisted"]
    missing = [line for line in clip_list.quarantine if line["kind"] != "unlisted"]
    first = f" The first, {missing[0]['path']}: {missing[0]['reason']}." if missing else ""
    others = f" {videos} holds {len(unlisted)} that aren't listed, such as {unlisted[0]}." if unlisted else ""
    return ReskdError(f"{annotations}: none of its {len(missing)} clips can be taken from {videos}.{first}{others} Give "
                      "the folder of the list's videos, and the NAME of the list's format")  # fmt: skip
