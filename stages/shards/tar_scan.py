"""A strict look at a tar shard: what WebDataset's iterator passes over in silence is refused here, by name."""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache.errors import ReskdError

# Of the containers that decode.py opens.
VIDEO_EXTENSIONS = frozenset(["mp4", "webm", "avi", "mov", "mkv", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "asf", "ogv",
                              "ts", "mts", "m2ts", "vob"])  # fmt: skip
LABEL_EXTENSIONS = frozenset(("json", "cls", "txt"))
HEADER = 512  # bytes of a tar block; the header block directly precedes the data, whatever the tar's dialect
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's base_plus_ext: the key ends at the first dot
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's skip_meta: such members never reach a sample
_AGAIN = "Copy or download the tar again, or write it anew"


@dataclass(frozen=True, slots=True)
class StudentSetup:
    """One file of a tar. `header` is the crc32 of its 512-byte header block, which holds its name and size."""

    name: str
    offset: int  # of the data, in bytes
    size: int
    header: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip of a tar: its key, its video, and whichever of json, cls, txt lie beside it."""

    key: str
    ext: str  # of the video, in lower case
    video: StudentSetup
    labels: dict[str, StudentSetup]


def scan_tar(path: Path, extensions: frozenset[str] = VIDEO_EXTENSIONS) -> list[Sample]:
    """The clips of an uncompressed tar, in its order, from its headers alone. `extensions`: those of videos.

    Raises ReskdError, naming tar and member, for whatever would lose or mix clips: a cut anywhere before the two
    zero blocks that end a tar (or data after them), links, directories, sparse and special members, names without
    a key, dotted stems (`a.b.mp4` and `a.c.mp4` are one WebDataset sample), keys that occur twice (adjacent or
    not), two videos or none under one key, a tar without any clip. A tar cut inside the padding after its end
    blocks has lost nothing and passes; the sizes of an index refuse that too.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            samples = _group(path, _members(path, file), extensions)
    except OSError as error:
        raise ReskdError(
            f"{path}: shard can't be read ({error.strerror or error}). Put it back, or index anew"
        ) from error
    if not samples:
        raise ReskdError(f"{path}: empty shard, no clip in it. Delete it, or write it anew")
    return samples


def read_member(file: BinaryIO, member: StudentSetup) -> bytes:
    """A member's bytes from its open tar."""
    file.seek(member.offset)
    return file.read(member.size)


def _members(path: Path, file: BinaryIO) -> Iterator[StudentSetup]:
    size = file.seek(0, 2)
    if size == 0:
        raise ReskdError(f"{path}: empty file (0 bytes). {_AGAIN}")
    file.seek(0)
    name = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                name = info.name
                yield _member(path, file, info, size)
                tar.members = []  # tarfile keeps them all
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, ReskdError):
            raise
        where = f"after member {name!r}" if name else "at its start"
        raise ReskdError(f"{path}: not a tar, or damaged, {where} ({error}). {_AGAIN} (uncompressed)") from error
    _check_end(path, file, end, size, name)


def _member(path: Path, file: BinaryIO, info: tarfile.TarInfo, size: int) -> StudentSetup:
    kinds = (
        (info.isdir(), "a directory"),
        (info.issym() or info.islnk(), "a link"),
        (info.issparse(), "a sparse file"),
    )
    kind = next((kind for found, kind in kinds if found), None if info.isreg() else "a special file")
    if kind:
        raise ReskdError(f"{path}: member {info.name!r} is {kind}. Pack the tar anew with plain files only")
    if info.size < 0 or info.offset_data + info.size > size:
        raise ReskdError(f"{path}: cut inside the data of member {info.name!r} ({info.offset_data + info.size} bytes "
                         f"needed, {size} there). {_AGAIN}")  # fmt: skip
    position = file.tell()
    file.seek(info.offset_data - HEADER)
    header = zlib.crc32(file.read(HEADER))
    file.seek(position)
    return StudentSetup(info.name, info.offset_data, info.size, header)


def _check_end(path: Path, file: BinaryIO, end: int, size: int, name: str | None) -> None:
    """tarfile takes a missing end, a cut header and garbage alike for the end of the tar."""
    last = f"after member {name!r}" if name else "at its start"
    if size - end < 2 * HEADER or size % HEADER:
        raise ReskdError(f"{path}: cut {last}: the two zero blocks that end a tar aren't there. {_AGAIN}")
    file.seek(end)
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise ReskdError(f"{path}: {last} come neither a header nor the end of the tar: damaged, or several tars "
                             f"joined. {_AGAIN}, one tar a file")  # fmt: skip


def _group(path: Path, members: Iterator[StudentSetup], extensions: frozenset[str]) -> list[Sample]:
    """As webdataset's group_by_keys: consecutive members of one key are a sample."""
    groups: dict[str, dict[str, StudentSetup]] = {}
    current = None
    for member in members:
        key, ext = _split(path, member.name)
        if key != current and key in groups:
            raise ReskdError(f"{path}: member {member.name!r}: key {key!r} occurs again after other clips. Keys must "
                             "be unique in a tar: rename one of them, or keep a clip's files side by side")  # fmt: skip
        current, group = key, groups.setdefault(key, {})
        if ext in group:
            raise ReskdError(f"{path}: member {member.name!r} occurs twice. Rename or remove one of them")
        group[ext] = member
    return [_sample(path, key, group, extensions) for key, group in groups.items()]


def _split(path: Path, name: str) -> tuple[str, str]:
    match = _NAME.match(name)
    if not match or _META.match(name):
        raise ReskdError(
            f"{path}: member {name!r}: WebDataset would skip it, its name isn't `key.ext`. Rename or remove it"
        )
    key, ext = match.group(1), match.group(2).lower()
    last = ext.rpartition(".")[2]
    if last != ext and last in VIDEO_EXTENSIONS | LABEL_EXTENSIONS:
        raise ReskdError(f"{path}: member {name!r}: dotted stem, WebDataset's key would be {key!r} and clips merge. "
                         "Rename it so that its only dot is the one before the extension")  # fmt: skip
    return key, ext


def _sample(path: Path, key: str, group: dict[str, StudentSetup], extensions: frozenset[str]) -> Sample:
    videos = [ext for ext in group if ext in extensions]
    if len(videos) != 1:
        names = ", ".join(repr(member.name) for member in group.values())
        found = "two videos" if videos else "no video"
        raise ReskdError(f"{path}: clip {key!r} has {found} (its members: {names}). A clip has one video of "
                         f"{'/'.join(sorted(extensions))}: add, rename or remove members")  # fmt: skip
    labels = {ext: member for ext, member in group.items() if ext in LABEL_EXTENSIONS}
    return Sample(key, videos[0], group[videos[0]], labels)
