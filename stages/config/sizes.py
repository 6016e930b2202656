"""Numbers of bytes as users write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from cache.errors import ReskdError

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20,
         "GiB": 2**30, "TiB": 2**40}  # fmt: skip


def parse_size(text: str, name: str = "--budget") -> int:
    """ "200GB", "1.5 TB", "64GiB" -> bytes; a GB is 10^9, a GiB 2^30. Raises ReskdError, which calls it `name`, for others."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip(), re.ASCII)
    size = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if size < 1:
        raise ReskdError(
            f"{name} {text!r} is no size: give a number and one of {', '.join(UNITS)}, such as 200GB or 1.5TB"
        )
    return int(size)


def format_size(size: float) -> str:
    """Bytes in words that `parse_size` reads, such as "1.5 TB"."""
    unit = next((unit for unit in ("TB", "GB", "MB", "kB") if size >= UNITS[unit]), "B")
    return f"{size / UNITS[unit]:.3g} {unit}" if size < 999.5 * UNITS[unit] else f"{size / UNITS[unit]:.0f} {unit}"


def _checked(text: str) -> str:
    parse_size(text, "the value")
    return text


SizeText = Annotated[str, AfterValidator(_checked)]  # in configs: a text that `parse_size` reads
