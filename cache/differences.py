"""How two identities, configs or lists differ: one line for each difference. A line names both sides."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from cache.identity import Identity, ShardEntry

Translate = Callable[[dict[str, Any]], dict[str, Any]]
SHOWN = 3  # how many shards are named


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], sides: tuple[str, str]) -> list[str]:
    """One line for each key in which two nested mappings differ; empty if they agree.

    `sides` name the two in the lines, such as ("the cache has", "this run wants").
    """
    flat = dict(flattened(stored)), dict(flattened(wanted))
    lines = []
    for name in dict.fromkeys([*flat[0], *flat[1]]):
        a, b = (json.dumps(values[name], ensure_ascii=False) if name in values else "nothing" for values in flat)
        if a != b:
            lines.append(f"{name}: {sides[0]} {a}, {sides[1]} {b}")
    return lines


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) for each value of nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flattened(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differing_identities(stored: Identity, wanted: Identity, translate: Translate = dict) -> list[str]:
    """One line for each field in which two caches' identities differ; empty if they agree.

    An older version may have written other names and fewer keys. `translate` takes an identity's JSON, replaces old names
    by today's, and fills in the defaults of absent keys.
    """
    stored_fields, wanted_fields = translate(stored.comparable()), translate(wanted.comparable())
    lines = differing_shards(stored.shards, wanted.shards, ("the cache", "this run"))
    classes = stored_fields.pop("classes"), wanted_fields.pop("classes")
    if classes[0] != classes[1]:
        lines.append(f"classes: {first_difference(*classes, ('in the cache', 'in this run'))}")
    return lines + differences(stored_fields, wanted_fields, ("the cache has", "this run wants"))


def differing_shards(stored: Sequence[ShardEntry], wanted: Sequence[ShardEntry], sides: tuple[str, str]) -> list[str]:
    """Lines about shards that only one side has, that differ in content, or that come in another order.

    `sides` name the two in the lines, such as ("the cache", "this run").
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


def renewed_shards(stored: Sequence[ShardEntry], wanted: Sequence[ShardEntry]) -> list[ShardEntry]:
    """The entries of `wanted` that differ from the `stored` ones by newer rules for frames alone. They are made again."""
    older = {entry.name: entry for entry in stored}
    both = [entry for entry in wanted if entry.name in older and older[entry.name].rules < entry.rules]
    return [entry for entry in both if replace(older[entry.name], rules=entry.rules) == entry]


def first_difference(first: Sequence[str], second: Sequence[str], sides: tuple[str, str]) -> str:
    """Where two lists of class names, which aren't equal, differ first.

    `sides` name the two in the message, such as ("in the cache", "in this run").
    """
    a, b = sides
    if len(first) != len(second):
        return f"{len(first)} {a} and {len(second)} {b}"
    number = next(i for i, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
    return f"class {number} is {first[number]!r} {a} and {second[number]!r} {b}"
