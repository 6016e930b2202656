"""The labels of a data set, checked before training or scoring."""

from __future__ import annotations

from cache.errors import ReskdError
from stages.shards.dataset import Dataset


def check_labels(data: Dataset, *, single: bool) -> dict[str, int]:
    """The numbers of "labelled" and "unlabelled" clips of a data set; reads every shard's rows once.

    Raises ReskdError for a label outside the classes, and, with `single`, for a clip with several labels.
    """
    counts = {"labelled": 0, "unlabelled": 0}
    for shard in data.shards:
        for row in data.rows(shard.name):
            counts["labelled" if row.labels else "unlabelled"] += 1
            if any(not 0 <= label < len(data.classes) for label in row.labels):
                raise ReskdError(f"{data.path}: shard {shard.name}, clip {row.key!r}: labels {list(row.labels)} lie "
                                 f"outside the {len(data.classes)} classes: prepare the data set again")  # fmt: skip
            if single and len(row.labels) > 1:
                raise ReskdError(
                    f"{data.path}: shard {shard.name}, clip {row.key!r} has {len(row.labels)} labels, but "
                    f"cross_entropy takes one: set losses.cross_entropy to 0 and losses.binary_cross_entropy to 1, or "
                    f"losses.random_label to true"
                )
    return counts
