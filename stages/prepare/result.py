"""What a data set holds, in figures, for `--json`."""

from collections import Counter
from typing import Any

from cache.json_file import parse_json, read_limited
from stages.prepare.output import QUARANTINE
from stages.shards.dataset import Dataset


def data_set_result(data: Dataset) -> dict[str, Any]:
    """{"data": path, "clips": usable ones, "shards", "classes": names, "check", "rules", "quarantine": {kind: number}}."""
    try:
        lines = read_limited(data.path / QUARANTINE).splitlines()
    except FileNotFoundError:
        lines = []
    return {
        "data": data.path,
        "clips": sum(map(len, data.usable_rows())),
        "shards": len(data.shards),
        "classes": data.classes,
        "check": data.check,
        "rules": data.rules,
        "quarantine": dict(sorted(Counter(parse_json(line)["kind"] for line in lines).items())),
    }
