"""Fetches a model of Hugging Face from its hub or from a store, without its code and its pickled weights.

The JSON files come first, so that what can't be taken costs no download of weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from cache.errors import ReskdError
from stages.remote.local_copy import naming_url
from stages.remote.url_path import UrlPath

CONFIG = "config.json"
DESCRIPTIONS, WEIGHTS = ["*.json"], ["model*.safetensors"]


def fetch(name: str, patterns: list[str], revision: str | None = None) -> Path:
    """The local folder, named by its revision, with the files of the model `name` that match one of `patterns`.

    Files in folders of the model are left out: they belong to other programs. Raises ReskdError if it can't be fetched.
    """
    try:
        from huggingface_hub import snapshot_download

        found = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except Exception as error:  # no network, no such model, no rights: the remedy is the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ReskdError(f"{name} is no file or folder here, and can't be fetched from Hugging Face's hub ({reason}): give the "
                         "path of a folder with its config.json and model.safetensors") from error  # fmt: skip
    return Path(found)


@contextmanager
def copy_of(url: UrlPath) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """A temporary folder with the JSON files of the model in the folder `url`, and a function that fetches its weights into it.

    All other files, such as code, are there by their names alone. Errors name the URL. Raises StoreError.
    """
    with tempfile.TemporaryDirectory(prefix="reskd-") as temporary:
        folder = Path(temporary) / (url.name or "model")
        folder.mkdir()
        files = {file.name: file for file in url.iterdir() if "\\" not in file.name}  # it would part folders on Windows

        def download(patterns: list[str]) -> Path:
            for name, file in files.items():
                if any(fnmatchcase(name, pattern) for pattern in patterns):
                    file.download(folder / name)
            return folder

        for name in files:
            (folder / name).touch()
        if CONFIG in files:  # another folder may have many JSON files
            download(DESCRIPTIONS)
        with naming_url(url, folder):
            yield folder, partial(download, WEIGHTS)
