"""Mutants of video files: bits flipped, cuts, elements swapped or repeated, sizes and table entries that lie."""

from __future__ import annotations

import numpy as np

from stages.bench.bad_videos.elements import Element, elements_of

ODD_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TABLE = 65536  # bytes; a leaf that is no longer may be a table or a header, and a longer one holds pictures


def mutant(data: bytes, seed: int) -> tuple[str, bytes]:
    """The kind of a mutation, and the file after it. The seed and the file decide both. The result differs from `data`."""
    rng = np.random.default_rng(seed)
    elements = elements_of(data)
    while True:
        kind = str(rng.choice(list(MUTATIONS)))
        changed = data
        for _ in range(rng.integers(1, 4)):  # later ones find the elements where they were before
            changed = MUTATIONS[kind](changed, elements, rng)
        if changed and changed != data:
            return kind, changed


def _flip_anywhere(data: bytes, _: list[Element], rng: np.random.Generator) -> bytes:
    return _flipped(data, rng.integers(0, len(data), rng.choice([1, 4, 32])), rng)


def _flip_headers(data: bytes, elements: list[Element], rng: np.random.Generator) -> bytes:
    """Flips bits in the heads of elements and in short leaves."""
    chosen = [_pick(elements, rng) for _ in range(rng.choice([1, 4]))]
    places = [rng.integers(e.start, max(e.start + 1, min(e.end, e.content + 32))) for e in chosen]
    return _flipped(data, np.array(places), rng)


def _flipped(data: bytes, places: np.ndarray, rng: np.random.Generator) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    changed[places.clip(0, len(data) - 1)] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return changed.tobytes()


def _cut_end(data: bytes, _: list[Element], rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, len(data) + 1)]


def _cut_middle(data: bytes, _: list[Element], rng: np.random.Generator) -> bytes:
    start, size = rng.integers(0, len(data)), int(2 ** rng.uniform(0, 14))
    return data[:start] + data[start + size :]


def _overwrite(data: bytes, _: list[Element], rng: np.random.Generator) -> bytes:
    """Zeros or noise, as a broken disk or download leaves them."""
    start, size = rng.integers(0, len(data)), int(2 ** rng.uniform(0, 14))
    size = min(size, len(data) - start)
    return data[:start] + (bytes(size) if rng.random() < 0.5 else rng.bytes(size)) + data[start + size :]


def _swap(data: bytes, elements: list[Element], rng: np.random.Generator) -> bytes:
    first = _pick(elements, rng)
    others = [e for e in elements if e.parent == first.parent and e is not first]
    if not others:
        return data
    second = others[rng.integers(len(others))]
    a, b = sorted((first, second), key=lambda e: e.start)
    return data[: a.start] + data[b.start : b.end] + data[a.end : b.start] + data[a.start : a.end] + data[b.end :]


def _repeat(data: bytes, elements: list[Element], rng: np.random.Generator) -> bytes:
    chosen, times = _pick(elements, rng), int(rng.choice([1, 1, 3]))
    data = _resized(data, elements, chosen, times * (chosen.end - chosen.start), rng)
    return data[: chosen.end] + times * data[chosen.start : chosen.end] + data[chosen.end :]


def _leave_out(data: bytes, elements: list[Element], rng: np.random.Generator) -> bytes:
    chosen = _pick(elements, rng)
    data = _resized(data, elements, chosen, chosen.start - chosen.end, rng)
    return data[: chosen.start] + data[chosen.end :]


def _lie_about_size(data: bytes, elements: list[Element], rng: np.random.Generator) -> bytes:
    sized = [e for e in elements if e.width]
    if not sized:
        return data
    chosen = _pick(sized, rng)
    true = chosen.end - chosen.counted_from
    size = int(rng.choice([*ODD_NUMBERS, true + 1, max(0, true - 1), 2 * true, true // 2]))
    return _with_size(data, chosen, size)


def _lie_in_table(data: bytes, elements: list[Element], rng: np.random.Generator) -> bytes:
    """An aligned word of a table or a header gets an odd number, or a little more or less than it was."""
    leaves = [e for e in elements if 4 <= e.end - e.content <= TABLE]
    if not leaves:
        return data
    chosen = _pick(leaves, rng)
    width = int(rng.choice([1, 2, 4]))
    place = chosen.content + width * int(rng.integers((chosen.end - chosen.content) // width))
    word = int.from_bytes(data[place : place + width], "big")
    number = int(rng.choice([*ODD_NUMBERS, word + 1, max(0, word - 1)])) % 256**width
    return data[:place] + number.to_bytes(width, "big") + data[place + width :]


def _pick(elements: list[Element], rng: np.random.Generator) -> Element:
    """One of the elements: half of the time one of the first fifty, which are headers; the packets are far more."""
    few = min(50, len(elements))
    return elements[rng.integers(few if rng.random() < 0.5 else len(elements))]


def _resized(data: bytes, elements: list[Element], chosen: Element, grown: int, rng: np.random.Generator) -> bytes:
    """The sizes of all elements around `chosen` as they are after it, or half of the time as they were."""
    if rng.random() < 0.5:
        return data
    parent = chosen.parent
    while parent is not None:
        around = elements[parent]
        data = _with_size(data, around, around.end - around.counted_from + grown)
        parent = around.parent
    return data


def _with_size(data: bytes, element: Element, size: int) -> bytes:
    if not element.width:
        return data
    if element.order == "ebml":
        bits = 7 * element.width
        size = min(max(size, 0), (1 << bits) - 1) | 1 << bits
        field = size.to_bytes(element.width, "big")
    else:
        field = (size % 256**element.width).to_bytes(element.width, element.order)
    return data[: element.size_at] + field + data[element.size_at + element.width :]


MUTATIONS = {
    "bits flipped": _flip_anywhere,
    "bits flipped in headers": _flip_headers,
    "cut at the end": _cut_end,
    "a cut in the middle": _cut_middle,
    "overwritten": _overwrite,
    "elements swapped": _swap,
    "elements repeated": _repeat,
    "elements left out": _leave_out,
    "sizes that lie": _lie_about_size,
    "tables that lie": _lie_in_table,
}
