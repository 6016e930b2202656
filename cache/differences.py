"""How two identities, configs or lists differ: a line for each difference, which names both sides."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from cache.identity import Identity, ShardEntry

Translate = Callable[[dict[str, Any]], dict[str, Any]]
SHOWN = 3  # shards that are named


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], sides: tuple[str, str]) -> list[str]:
    """A line for each key in which two nested mappings differ; empty where they agree.

    `sides` name the two in the message: ("the cache has", "this run wants").
    """
    left, right = dict(flattened(stored)), dict(flattened(wanted))
    lines = []
    for name in dict.fromkeys([*left, *right]):
        a, b = (json.dumps(side[name], ensure_ascii=False) if name in side else "nothing" for side in (left, right))
        if a != b:
            lines.append(f"{name}: {sides[0]} {a}, {sides[1]} {b}")
    return lines


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of each value in nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flattened(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differing_identities(stored: Identity, wanted: Identity, translate: Translate = dict) -> list[str]:
    """A line for each field in which two caches' identities differ; empty where they agree.

    `translate` takes an identity's JSON to today's names and fills in the defaults of keys that an older version didn't
    have, so that a cache of that version is known again.
    """
    left, right = translate(stored.comparable()), translate(wanted.comparable())
    lines = differing_shards(stored.shards, wanted.shards, ("the cache", "this run"))
    classes = left.pop("classes"), right.pop("classes")
    if classes[0] != classes[1]:
        lines.append(f"classes: {first_difference(*classes, ('in the cache', 'in this run'))}")
    return lines + differences(left, right, ("the cache has", "this run wants"))


def differing_shards(stored: Sequence[ShardEntry], wanted: Sequence[ShardEntry], sides: tuple[str, str]) -> list[str]:
    """Lines on shards that only one side has, that have other content, or that come in another order.

    `sides` name the two in the message: ("the cache", "this run").
    """
    a, b = {e.name: e for e in stored}, {e.name: e for e in wanted}
    gone, new = [name for name in a if name not in b], [name for name in b if name not in a]
    changed = [name for name in a if name in b and a[name] != b[name]]
    lines = []
    for names, side in zip((gone, new), sides, strict=True):
        if names:
            shown = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
            lines.append(f"shards: {len(names)} only in {side} (of {len(a)} and {len(b)}): {shown}")
    for name in changed[:SHOWN]:
        pairs = [(f.name, getattr(a[name], f.name), getattr(b[name], f.name)) for f in fields(ShardEntry)]
        parts = ", ".join(f"{field} {x} in {sides[0]}, {y} in {sides[1]}" for field, x, y in pairs if x != y)
        lines.append(f"shards: {len(changed)} of {len(a)} changed: {name}: {parts}")
    if not lines and [e.name for e in stored] != [e.name for e in wanted]:
        lines.append(f"shards: the same {len(a)} shards in another order")
    return lines


def first_difference(theirs: Sequence[str], ours: Sequence[str], sides: tuple[str, str] = ("there", "here")) -> str:
    """Where two lists of class names, which aren't equal, differ. `sides` name the two in the message."""
    a, b = sides
    if len(theirs) != len(ours):
        return f"{len(theirs)} {a} and {len(ours)} {b}"
    number = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return f"class {number} is {theirs[number]!r} {a} and {ours[number]!r} {b}"
