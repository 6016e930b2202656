"""A video to be recognised: a file, or a row of a data set."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stages.shards.dataset import Dataset, Row
from stages.video.mapped_file import map_file


@dataclass(frozen=True)
class FileVideo:
    """A file. It is mapped, so a long video takes no memory."""

    path: Path

    @property
    def name(self) -> str:
        """As the output calls the video."""
        return str(self.path)

    @property
    def key(self) -> tuple[str, str]:
        """What views are drawn with."""
        return "", self.name

    @contextmanager
    def open(self) -> Iterator[mmap.mmap]:
        """The bytes of the video. Raises DecodeError or OSError."""
        with map_file(self.path) as data:
            yield data


@dataclass(frozen=True)
class RowVideo:
    """A clip of a data set: a video in a tar, or a part of one."""

    data: Dataset = field(repr=False)
    shard: str
    number: int

    @property
    def row(self) -> Row:
        return self.data.rows(self.shard)[self.number]

    @property
    def name(self) -> str:
        """As the output calls the video: data set/shard/key.ext. Two data sets may have the same shards and keys."""
        return f"{self.data.path}/{self.shard}/{self.row.key}.{self.row.ext}"

    @property
    def key(self) -> tuple[str, str]:
        """What views are drawn with, as in training and `evaluate`."""
        return self.shard, self.row.key

    @property
    def labels(self) -> list[str]:
        """The names of its true classes."""
        return [self.data.classes[label] for label in self.row.labels]

    @contextmanager
    def open(self) -> Iterator[bytes]:
        """The bytes of the video. Raises ReskdError if the tar is missing or differs from the index."""
        yield self.data.read(self.shard, self.number)


Video = FileVideo | RowVideo
