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

EXPORT_WEIGHTS = "if you trust the file, export the weights alone: torch.save(model.state_dict(), PATH)"
COPY_AGAIN = "copy or download it again"
AVERAGED = ("state_dict_ema", "model_ema")  # averaged weights: the keys of timm's and of torchvision's trainer


class StoredWeights(NamedTuple):
    """The content of a file of weights."""

    tensors: dict[str, Tensor]  # under the names in the file
    classes: tuple[str, ...] | None = None  # class names, if the file has them
    card: str | None = None  # the description that `save_model` wrote
    averaged: str | None = None  # the key of averaged weights that the file has too, and that are not in `tensors`


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


def read_weight_file(path: Path) -> StoredWeights:
    """The weights in a .safetensors, or in a .pth, .pt or .bin of `torch.save`: a state dict or a trainer's checkpoint.

    From a checkpoint `state_dict` or `model` is taken. mmengine stores averaged weights there. timm's and torchvision's
    trainers store them under another key: they are not taken, and `averaged` names the key.
    The prefixes of DistributedDataParallel and torch.compile are removed from the names.

    Raises:
        ReskdError: the file doesn't exist, is damaged, has no weights, or has objects that are not known to be harmless.
    """
    if not os.path.isfile(path):
        raise ReskdError(f"checkpoint {path} does not exist, or is not a file; give a .safetensors, .pth, .pt or .bin")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        return StoredWeights(_without_prefixes(tensors), card=metadata.get("reskd"))
    loaded = _unpickle(path)
    averaged = next((key for key in AVERAGED if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)), None)
    return StoredWeights(_without_prefixes(_state_dict(path, loaded)), classes=_class_names(loaded), averaged=averaged)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises ReskdError if it can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
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


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    inner = loaded
    if isinstance(loaded, dict):
        inner = next((loaded[k] for k in ("state_dict", "model") if isinstance(loaded.get(k), dict)), loaded)
    if not isinstance(inner, dict) or not any(isinstance(value, Tensor) for value in inner.values()):
        keys = f" with {', '.join(map(str, list(inner)[:12])) or 'nothing'} in it" if isinstance(inner, dict) else ""
        raise ReskdError(
            f"checkpoint {path} is a {type(inner).__name__}{keys}, not a state dict of tensors; {EXPORT_WEIGHTS}"
        )
    for name, value in inner.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ReskdError(f"checkpoint {path}: {name!r} is a {type(value).__name__}, not a tensor; {EXPORT_WEIGHTS}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ReskdError(f"checkpoint {path}: {name} is sparse, quantised, or without data; save plain tensors")
    return {name: value.detach() for name, value in inner.items()}


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _class_names(loaded: Any) -> tuple[str, ...] | None:
    """The class names: `meta.CLASSES` of mmcv, `meta.dataset_meta.classes` of mmengine."""
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    for section in (meta, meta.get("dataset_meta") if isinstance(meta, dict) else None):
        for key in ("CLASSES", "classes"):
            names = section.get(key) if isinstance(section, dict) else None
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None
