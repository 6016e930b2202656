"""What lies at the source of `prepare`: videos in folders or lists, publishers' annotations, or tars; and all that
decides which bytes become of it.
"""

import difflib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import check_shard_names
from stages.prepare.annotations import Clip, extension, list_csv, list_files, list_videos
from stages.prepare.frame_folders import FPS, list_frames
from stages.prepare.listing import Line, Listing, all_labels, unlisted
from stages.prepare.lookup import find_videos
from stages.prepare.publishers import NAMES, list_published
from stages.prepare.raw_frames import encoder_identity
from stages.shards.index import dump
from stages.shards.tar_scan import VIDEO_EXTENSIONS
from stages.video.decode import decoder_identity

OF_FRAMES = ("with_offset", "frame_template", "fps")
FORMAT = 2  # of a data set's content: raised when the same source would give other bytes


@dataclass(frozen=True)
class Annotated:
    """How the videos of a source are annotated; which of it goes with which source, `look` checks."""

    annotations: Path | None = None
    videos: Path | None = None
    split: str | None = None
    with_offset: bool = False
    frame_template: str | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Source:
    """Videos, or tars by relative name. `arguments` decide every byte of the output."""

    listing: Listing  # its clips are files that are there
    tars: list[str]
    base: str  # the folder of the tars, relative to the output
    arguments: dict[str, Any]


def look(
    source: Path, output: Path, annotated: Annotated, options: Mapping[str, Any], order: Sequence[str] | None
) -> Source:
    """Lists the source and decides what it is. Raises ReskdError for what it can't be, and for options of others."""
    name = published_name(source, annotated)
    _check_options(source, name, annotated)
    tars, base = {}, "."
    if name is not None:
        listing, kind = _list_named(name, output, annotated), name
    elif source.is_file() and annotated.annotations is None:
        listing, kind = _listing(list_csv(source, source.parent), names=False), "CSV"
    elif not source.is_dir():
        raise ReskdError(f"{source}: not a folder. Give the folder of the videos that {annotated.annotations} lists")
    elif annotated.annotations is not None:
        listing, kind = _listing(list_csv(annotated.annotations, source), names=False), "CSV"
        others = find_videos(source, output).names - {clip.name for clip in listing.clips}
        listing = replace(listing, quarantine=unlisted(sorted(others), annotated.annotations.name))
    else:
        files = list_files(source, output)
        listing, kind = _listing(list_videos(source, files), names=True), "folder of videos"
        tars = {p.relative_to(source).as_posix(): p.stat().st_size for p in files if p.suffix == ".tar"}
        if bool(listing.clips) == bool(tars):
            what = (f"both videos ({listing.clips[0].name}) and tars ({next(iter(tars))})" if tars
                    else "neither videos nor tars")  # fmt: skip
            raise ReskdError(f"{source}: {what} in it. Give a folder of either; known as videos: "
                             f"{', '.join(sorted(VIDEO_EXTENSIONS))}")  # fmt: skip
    listed = _listed(listing)
    if tars:
        check_shard_names(list(tars))
        if options["limit"] is not None:
            raise ReskdError(f"{source}: --limit {options['limit']} takes some of the clips, and tars are indexed as "
                             "they are. Leave it out")  # fmt: skip
        listed, options, kind = sorted(tars.items()), {}, "tar shards"
        base = Path(os.path.relpath(source.resolve(), output.resolve())).as_posix()
    digest = hashlib.sha256(dump([listed, sorted(listing.labels)])).hexdigest()
    arguments = {"format": FORMAT, "source": kind, "base": base, "items": len(listed), "listing": digest, **options,
                 "classes": list(order) if order else None, "decoder": decoder_identity(),
                 "encoder": encoder_identity() if name == "rawframes" else None}  # fmt: skip
    present = _present(listing)
    if not present.clips and not tars:
        raise _nothing_there(present, annotated.annotations or source, annotated.videos or source)
    return Source(present, sorted(tars), base, arguments)


def published_name(source: Path, annotated: Annotated) -> str | None:
    """The publisher's format that a source names: it does where annotations are given, or nothing of that name is
    there."""
    return str(source) if str(source) in NAMES and (annotated.annotations is not None or not source.exists()) else None


def _check_options(source: Path, name: str | None, annotated: Annotated) -> None:
    if name is not None:
        missing = next((option for option in ("annotations", "videos") if getattr(annotated, option) is None), None)
        if missing:
            raise ReskdError(f"{name}: --{missing} is missing. Give the annotations as published, --annotations FILE, "
                             f"and the folder --videos DIR (for a folder called {name}: its whole path)")  # fmt: skip
        if not annotated.annotations.is_file() or not annotated.videos.is_dir():
            wrong = annotated.annotations.is_file()
            raise ReskdError(
                f"{annotated.videos}: no such folder" if wrong else f"{annotated.annotations}: no such file"
            )
    elif not source.exists():
        near = difflib.get_close_matches(str(source), NAMES, n=1)
        raise ReskdError(f"{source}: no such folder.{f' Did you mean {near[0]!r}?' if near else ''} Give a folder of "
                         f"videos or of tar shards, a CSV, or one of {', '.join(NAMES)} with --annotations and "
                         "--videos")  # fmt: skip
    for option in (field.name for field in fields(annotated)):
        whose = ("rawframes",) if option in OF_FRAMES else NAMES if option != "split" else ("kinetics", "actnet")
        if getattr(annotated, option) not in (None, False) and name not in whose and option != "annotations":
            raise ReskdError(f"--{option.replace('_', '-')} goes with {' or '.join(whose)}, not with {source}. Leave it "
                             "out")  # fmt: skip


def _list_named(name: str, output: Path, annotated: Annotated) -> Listing:
    file, videos = annotated.annotations, annotated.videos
    if name != "rawframes":
        return list_published(name, file, videos, output, annotated.split)
    return list_frames(file, videos, output, template=annotated.frame_template, fps=annotated.fps or FPS,
                       with_offset=annotated.with_offset)  # fmt: skip


def _listing(clips: list[Clip], *, names: bool) -> Listing:
    return Listing(clips, all_labels(clips), names)


def _listed(listing: Listing) -> list[Any]:
    """All that decides the bytes: of places on this machine nothing."""
    clips = [[clip.identity, clip.size, clip.labels, clip.start, clip.end,
              clip.frames and [clip.frames.template, clip.frames.first, clip.frames.fps]] for clip in listing.clips]  # fmt: skip
    return clips + [[line["path"], line["kind"]] for line in listing.quarantine + listing.report]


def _present(listing: Listing) -> Listing:
    """The clips whose videos are there; of the others, lines of quarantine.jsonl."""
    lines = {i: line for i, clip in enumerate(listing.clips) if (line := _unfit(clip))}
    clips = [clip for i, clip in enumerate(listing.clips) if i not in lines]
    return replace(listing, clips=clips, quarantine=listing.quarantine + list(lines.values()))


def _nothing_there(listing: Listing, annotations: Path, videos: Path) -> ReskdError:
    """The error where no listed clip is there: nearly always a wrong folder, or a wrong NAME."""
    there = [line["path"] for line in listing.quarantine if line["kind"] == "unlisted"]
    lost = [line for line in listing.quarantine if line["kind"] != "unlisted"]
    first = f" The first, {lost[0]['path']}: {lost[0]['reason']}." if lost else ""
    others = f" {videos} holds {len(there)} that aren't listed, such as {there[0]}." if there else ""
    return ReskdError(f"{annotations}: none of its {len(lost)} clips can be taken from {videos}.{first}{others} Give the "
                      "folder of the list's videos, and the NAME of its format")  # fmt: skip


def _unfit(clip: Clip) -> Line | None:
    if clip.size is None:
        outside = clip.name.startswith(("/", "../")) and clip.path.is_file()
        what = "it lies outside the folder of the videos" if outside else "no such file"
        return {"path": clip.name, "kind": "absent", "reason": f"{what} ({clip.where})"}
    if clip.frames is None and extension(clip.name) not in VIDEO_EXTENSIONS:
        known = ", ".join(sorted(VIDEO_EXTENSIONS))
        reason = f"not a video by its extension ({clip.where}); known: {known}"
        return {"path": clip.name, "kind": "extension", "reason": reason}
    return None
