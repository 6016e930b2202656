"""Reads files of weights from this and other programs, and never runs code from a file.

`torch.save` writes a pickle, and a pickle may call any function. torch's `weights_only` reader builds only tensors and
plain containers. Trainers store a few other objects beside the weights. Those named in `STAND_INS` are read as empty
objects. Any other name is refused before it is looked up.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache.errors import ReskdError
from stages.models.weight_containers import (
    EXPORT_WEIGHTS,
    class_names,
    is_mmaction2_1x,
    other_weights,
    state_dict_of,
    weights_key,
    without_prefixes,
)
from stages.remote.local_copy import local_copy
from stages.remote.url_path import Location
from stages.runtime.utf8_path import utf8_path

COPY_AGAIN = "copy or download it again"


class StoredWeights(NamedTuple):
    """The content of a file of weights."""

    tensors: dict[str, Tensor]  # under the names in the file
    classes: tuple[str, ...] | None = None  # class names, if the file has them
    card: str | None = None  # the description that `save_model` wrote
    key: str | None = None  # where `tensors` are in a trainer's checkpoint; None: the file is a state dict itself
    others: tuple[str, ...] = ()  # the keys of other sets of weights in the checkpoint, such as averaged ones
    mmaction2_1x: bool = False  # whether mmaction2 1.x wrote the file
    format: str | None = None  # whose file it was, if the tensors are under this program's names already
    notes: tuple[str, ...] = ()  # for people, about such a file


class Ignored:
    """Takes the place of an object that no weights depend on. It accepts any arguments and keeps nothing."""

    def __new__(cls, *args: Any) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


STAND_INS = [
    *(
        (Ignored, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    (Ignored, "numpy.ndarray"),  # such as the best score
    (Ignored, "numpy.dtype"),
    (Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),  # loss curves in `message_hub`
    (Ignored, "builtins.getattr"),  # HistoryBuffer's methods in `message_hub`
    (OrderedDict, "mmengine.config.config.ConfigDict"),
    (OrderedDict, "mmcv.utils.config.ConfigDict"),
    (OrderedDict, "addict.addict.Dict"),
    (OrderedDict, "yacs.config.CfgNode"),  # Swin's authors
    (Ignored, "argparse.Namespace"),  # timm's and torchvision's trainers
    *((Ignored, f"pathlib.{name}") for name in ("PosixPath", "WindowsPath", "_local.PosixPath", "_local.WindowsPath")),
]


def read_weight_file(path: Location) -> StoredWeights:
    """The weights in a .safetensors, or in a .pth, .pt or .bin of `torch.save`: a state dict or a trainer's checkpoint.

    From a checkpoint the first of the keys `weight_containers.KEYS` is taken. mmengine stores averaged weights there. Other
    trainers store them under another key: they are not taken, and `others` names the key.
    The prefixes of wrappers are removed from the names.

    Raises:
        ReskdError: the file doesn't exist, is damaged, has no weights, or has objects that are not known to be harmless.
        StoreError: a file at a URL can't be had.
    """
    with local_copy(path) as file:
        return _read_weight_file(file)


def _read_weight_file(path: Path) -> StoredWeights:
    if not os.path.isfile(path):
        raise ReskdError(f"checkpoint {path} does not exist, or is not a file; give a .safetensors, .pth, .pt or .bin")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        return StoredWeights(without_prefixes(tensors), card=metadata.get("reskd"))
    loaded = _unpickle(path)
    tensors = without_prefixes(state_dict_of(path, loaded))
    return StoredWeights(
        tensors,
        classes=class_names(loaded),
        key=weights_key(loaded),
        others=other_weights(loaded),
        mmaction2_1x=is_mmaction2_1x(loaded, set(tensors)),
    )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises ReskdError if it can't be read."""
    try:
        with utf8_path(path) as name, safe_open(name, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ReskdError(
            f"checkpoint {path} can't be read as safetensors: {error}; {COPY_AGAIN}, or read a checkpoint of another "
            "program with import-checkpoint"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins with the length of a JSON header in 8 bytes, and with that header."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _unpickle(path: Path) -> Any:
    _check_file_type(path)
    try:
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (name := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise ReskdError(
                f"checkpoint {path} is no readable file of weights; {COPY_AGAIN}, or {EXPORT_WEIGHTS}"
            ) from error
        raise ReskdError(
            f"checkpoint {path} holds more than weights: it would look up {name[1]}, and nothing in a checkpoint is "
            f"run; {EXPORT_WEIGHTS}"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'it ends too early'}"
        raise ReskdError(f"checkpoint {path} is damaged or no file of weights ({reason}); {COPY_AGAIN}") from error


def _check_file_type(path: Path) -> None:
    """ReskdError if the first bytes are those of a file that can't be a checkpoint, or if a zip archive is damaged."""
    with open(path, "rb") as file:
        start = file.read(300)
    fault = None
    if not start:
        fault = "is empty"
    elif start.lstrip()[:1] == b"<":
        fault = "is a web page or XML, not a checkpoint"
    elif start.startswith(b"version https://git-lfs"):
        fault = "is a pointer of Git LFS, not the file itself"
    elif start[257:262] == b"ustar":
        raise ReskdError(f"checkpoint {path} is a tar archive, of a download or of torch 0.1: unpack it, or save its state "
                         "dict again with a newer torch")  # fmt: skip
    elif start.startswith(b"PK"):
        fault = _zip_fault(path)
    if fault:
        raise ReskdError(f"checkpoint {path} {fault}; {COPY_AGAIN}")


def _zip_fault(path: Path) -> str | None:
    """What is wrong with a zip archive of `torch.save`, or None. torch doesn't check the checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (claimed := sum(member.file_size for member in archive.infolist())) > path.stat().st_size:
                return f"claims {claimed} bytes, more than the file has: torch.save doesn't compress"
            for member in archive.infolist():
                if member.filename.endswith("/constants.pkl"):
                    raise ReskdError(f"checkpoint {path} is a TorchScript program; {EXPORT_WEIGHTS}")
                if member.CRC == 0:  # the member has no checksum, or is empty
                    continue
                with archive.open(member) as content:
                    while content.read(1 << 24):
                        pass
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        return f"is truncated or damaged ({error})"
    return None
