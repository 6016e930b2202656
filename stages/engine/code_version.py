"""The version of the code that a process runs: all processes of an engine must have the same one."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from cache.errors import ReskdError

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "torchvision", "timm", "numpy", "zarr", "numcodecs", "decord", "av", "pillow")  # decide content


def code_version() -> dict[str, str]:
    """Name -> version of all that decides what is computed: our files (as a digest), Python, the packages."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in ("cache", "stages") for p in (ROOT / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    versions = {"reskd": digest.hexdigest()[:12], "Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def check_version(wanted: Mapping[str, str]) -> None:
    """Raise ReskdError, which names each difference, if this process has another version than `wanted`."""
    here = code_version()
    other = [
        f"{name} {here.get(name, 'missing')} (wanted: {wanted.get(name, 'none')})"
        for name in sorted(wanted.keys() | here.keys())
        if wanted.get(name) != here.get(name)
    ]
    if other:
        raise ReskdError(
            f"another version of the code in {ROOT}: {', '.join(other)}. Install the same version on every node"
        )
