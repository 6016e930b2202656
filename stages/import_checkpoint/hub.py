"""Fetches a model from Hugging Face's hub: its JSON files first, so that what can't be taken costs no download of weights."""

from __future__ import annotations

from pathlib import Path

from cache.errors import ReskdError

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
