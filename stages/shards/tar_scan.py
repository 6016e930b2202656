"""A strict check of a tar shard: WebDataset's iterator skips faults in silence, `scan_tar` refuses and names them."""

import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache.errors import ReskdError

# Extensions of the containers that decode.py opens.
VIDEO_EXTENSIONS = frozenset(["mp4", "webm", "avi", "mov", "mkv", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "asf", "ogv",
                              "ts", "mts", "m2ts", "vob"])  # fmt: skip
LABEL_EXTENSIONS = frozenset(("json", "cls", "txt"))
HEADER = 512  # bytes of a tar block; in every dialect of tar, the header block lies directly before the data
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's base_plus_ext: the key ends at the first dot
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's skip_meta: such members never reach a sample
MAX_HEADER = 16 << 10  # bytes of a long name or of a pax header; Python searches it in quadratic time
_REPLACE_TAR = "Copy or download the tar again, or write it anew"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar. `header` is the crc32 of the member's 512-byte header block, which holds name and size."""

    name: str
    offset: int  # of the data, in bytes
    size: int
    header: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip of a tar: its key, its video, and its json, cls and txt members, if any."""

    key: str
    ext: str  # of the video, in lower case: all that follows the key's dot, `mp4` or `video.mp4`
    video: Member
    labels: dict[str, Member]


@dataclass(frozen=True, slots=True)
class TarContent:
    """The clips of a tar, in tar order, and what has no video: the names of the files of each such key."""

    samples: list[Sample]
    without_video: list[tuple[str, ...]]


def scan_tar(path: Path, extensions: frozenset[str] = VIDEO_EXTENSIONS) -> TarContent:
    """The content of an uncompressed tar; reads the tar's headers alone. `extensions`: those of videos.

    As in WebDataset, a key is what stands before the first dot of a file's name, and files side by side with one key are
    one clip: `a.mp4`, `a.cls` and `a.info.json` are the clip `a`. The video is the file whose last extension is a video's,
    so `a.video.mp4` is one. Labels are the files whose whole extension is json, cls or txt; `a.info.json` holds none.
    Directories are passed over.

    Raises ReskdError, which names the tar and the member, for every fault that would lose or mix clips: a tar that is
    cut before the two zero blocks at its end, data after these blocks, links, sparse and special members, a video whose
    name has no key, keys that occur twice, two videos with one key, a tar without clips. A tar that is cut in the padding
    after its zero blocks has lost nothing and passes; the sizes in an index refuse it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ReskdError(f"{path}: no regular file. Delete it, or put the tar there")
    try:
        with open(path, "rb") as file:
            content = _group(path, _members(path, file), extensions)
    except OSError as error:
        raise ReskdError(
            f"{path}: shard can't be read ({error.strerror or error}). Put it back, or run `prepare` again"
        ) from error
    if not content.samples:
        other = f", but files such as {content.without_video[0][0]!r}" if content.without_video else ""
        raise ReskdError(f"{path}: empty shard, no clip in it{other}. Delete it, or write it anew")
    return content


def has_video(extensions: Iterable[str]) -> bool:
    """Whether one of these, the extensions of one key's files, is a video's."""
    return any(_last(ext) in VIDEO_EXTENSIONS for ext in extensions)


def read_member(file: BinaryIO, member: Member) -> bytes:
    """A member's content, read from its open tar."""
    file.seek(member.offset)
    return file.read(member.size)


def _members(path: Path, file: BinaryIO) -> Iterator[Member]:
    size = file.seek(0, 2)
    if size == 0:
        raise ReskdError(f"{path}: empty file (0 bytes). {_REPLACE_TAR}")
    file.seek(0)
    name = None
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            for info in tar:
                name = info.name
                if not info.isdir():
                    yield _member(path, file, info, size)
                tar.members = []  # tarfile keeps them all
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError) as error:
        if isinstance(error, ReskdError):
            raise
        place = f"after member {name!r}" if name else "at its start"
        raise ReskdError(f"{path}: not a tar, or damaged, {place} ({error}). {_REPLACE_TAR} (uncompressed)") from error
    _check_end(path, file, end, size, name)


class _Headers:
    """An open tar for tarfile, which reads headers alone from it. A header that claims a hostile size is refused."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _member(path: Path, file: BinaryIO, info: tarfile.TarInfo, size: int) -> Member:
    kinds = ((info.issym() or info.islnk(), "a link"), (info.issparse(), "a sparse file"))
    kind = next((kind for is_kind, kind in kinds if is_kind), None if info.isreg() else "a special file")
    if kind:
        raise ReskdError(f"{path}: member {info.name!r} is {kind}. Pack the tar anew with plain files only")
    if info.size < 0 or info.offset_data + info.size > size:
        raise ReskdError(f"{path}: cut inside the data of member {info.name!r} ({info.offset_data + info.size} bytes "
                         f"needed, the tar has {size}). {_REPLACE_TAR}")  # fmt: skip
    position = file.tell()
    file.seek(info.offset_data - HEADER)
    header = zlib.crc32(file.read(HEADER))
    file.seek(position)
    return Member(info.name, info.offset_data, info.size, header)


def _check_end(path: Path, file: BinaryIO, end: int, size: int, name: str | None) -> None:
    """Check that two zero blocks and zeros alone follow the last member.

    tarfile accepts a missing end, a cut header and garbage as the end of the tar.
    """
    place = f"after member {name!r}" if name else "at its start"
    if size - end < 2 * HEADER or size % HEADER:
        raise ReskdError(f"{path}: cut {place}: the two zero blocks at the end of a tar are missing. {_REPLACE_TAR}")
    file.seek(end)
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise ReskdError(f"{path}: neither a header nor the end of the tar {place}: damaged, or several tars "
                             f"joined. {_REPLACE_TAR}, one tar a file")  # fmt: skip


def _group(path: Path, members: Iterator[Member], extensions: frozenset[str]) -> TarContent:
    """Consecutive members with one key are a sample, as in webdataset's group_by_keys."""
    groups: dict[str, dict[str, Member]] = {}
    content, current = TarContent([], []), None
    for member in members:
        key, ext = _split(path, member.name, extensions)
        if key is None:
            content.without_video.append((member.name,))
            continue
        if key != current and key in groups:
            raise ReskdError(f"{path}: member {member.name!r}: key {key!r} occurs again after other clips. Keys must "
                             "be unique in a tar: rename one of them, or keep a clip's files side by side")  # fmt: skip
        current, group = key, groups.setdefault(key, {})
        if ext in group:
            raise ReskdError(f"{path}: member {member.name!r} occurs twice. Rename or remove one of them")
        group[ext] = member
    for key, group in groups.items():
        if sample := _sample(path, key, group, extensions):
            content.samples.append(sample)
        else:
            content.without_video.append(tuple(member.name for member in group.values()))
    return content


def _split(path: Path, name: str, extensions: frozenset[str]) -> tuple[str | None, str]:
    """Key and extension of a name; the key None for a file without a key that is no video."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ReskdError(f"{path}: member {name!r} leads out of the folder of the tar. Pack the tar anew, with names below "
                         "one folder")  # fmt: skip
    match = _NAME.match(name)
    if match and not _META.match(name):
        return match.group(1), match.group(2).lower()
    if "." in name and _last(name.lower()) in extensions:
        raise ReskdError(f"{path}: member {name!r}: WebDataset would skip this video: its name isn't `key.ext`. Rename or "
                         "remove it")  # fmt: skip
    return None, ""


def _sample(path: Path, key: str, group: dict[str, Member], extensions: frozenset[str]) -> Sample | None:
    """The clip of one key; None without a video."""
    videos = [ext for ext in group if _last(ext) in extensions]
    if len(videos) > 1:
        names = " and ".join(repr(group[ext].name) for ext in videos)
        raise ReskdError(f"{path}: clip {key!r} has {len(videos)} videos: {names}. The key is what stands before the first "
                         "dot of a name, and it has one video: rename or remove members")  # fmt: skip
    labels = {ext: member for ext, member in group.items() if ext in LABEL_EXTENSIONS}
    return Sample(key, videos[0], group[videos[0]], labels) if videos else None


def _last(ext: str) -> str:
    """The last of several extensions: `mp4` of `video.mp4`."""
    return ext.rpartition(".")[2]
