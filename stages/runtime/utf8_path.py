"""Names that aren't UTF-8, for libraries that take nothing else (safetensors, TensorBoard)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """The path of an existing file or folder, in UTF-8. If its own name isn't, another one that lasts for the context.

    Linux allows any bytes in names, and gives each open file or folder a plain name as well.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield name
