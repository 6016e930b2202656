"""Files of weights, whoever wrote them, read without running anything that is in them.

A file of `torch.save` is a pickle, and a pickle may call anything. Here it is read by torch's `weights_only` reader,
which builds tensors and plain containers alone. Trainers add a few objects of their own beside the weights; those named
in `STAND_INS` are read as empty ones, whatever their package, and any other name is refused before it is looked up.
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

ALONE = "export the weights alone, where you trust the file: torch.save(model.state_dict(), PATH)"
AGAIN = "copy or download it again"
AVERAGED = ("state_dict_ema", "model_ema")  # of timm's trainer, of torchvision's


class Stored(NamedTuple):
    """Tensors under the file's own names; class names where it has them; what `save_model` wrote beside them; and how
    averaged weights are called that lie beside those taken."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    card: str | None = None
    averaged: str | None = None


class Unread:
    """Stands for an object whose content no weights depend on: made of anything, it keeps nothing."""

    def __new__(cls, *args: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


STAND_INS = [
    *((Unread, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    (Unread, "numpy.ndarray"),  # the best score and its like
    (Unread, "numpy.dtype"),
    (Unread, "mmengine.logging.history_buffer.HistoryBuffer"),  # loss curves, in `message_hub`
    (Unread, "builtins.getattr"),  # in the same place, of HistoryBuffer's methods
    (OrderedDict, "mmengine.config.config.ConfigDict"),
    (OrderedDict, "mmcv.utils.config.ConfigDict"),
    (OrderedDict, "addict.addict.Dict"),
    (OrderedDict, "yacs.config.CfgNode"),  # of Swin's authors
    (Unread, "argparse.Namespace"),  # of timm's and torchvision's trainers
    *((Unread, f"pathlib.{name}") for name in ("PosixPath", "WindowsPath", "_local.PosixPath", "_local.WindowsPath")),
]


def read_file(path: Path) -> Stored:
    """The weights in a .safetensors, or in a .pth, .pt or .bin of `torch.save`, bare or in a trainer's checkpoint.

    Of a checkpoint `state_dict` or `model` is taken (mmengine, which averages weights, keeps the averaged ones there;
    those that timm's and torchvision's trainers keep beside it are not taken, and named in `averaged`).
    Prefixes of DistributedDataParallel and torch.compile are taken off.

    Raises:
        ReskdError: it isn't there, is damaged, is no file of weights, or holds objects that are neither tensors nor
            known to be harmless.
    """
    if not os.path.isfile(path):
        raise ReskdError(f"checkpoint {path} does not exist, or is not a file; give a .safetensors, .pth, .pt or .bin")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        return Stored(_without_prefixes(tensors), card=metadata.get("reskd"))
    loaded = _unpickle(path)
    averaged = next((key for key in AVERAGED if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)), None)
    return Stored(_without_prefixes(_state_dict(path, loaded)), classes=_class_names(loaded), averaged=averaged)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ReskdError where it can't be read as one."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ReskdError(
            f"checkpoint {path} can't be read as safetensors: {error}; {AGAIN}, or bring a checkpoint of another "
            "program in by import-checkpoint"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Eight bytes with the length of a JSON header, and that header's first."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _unpickle(path: Path) -> Any:
    _refuse_what_is_no_checkpoint(path)
    try:
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (found := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise ReskdError(f"checkpoint {path} is no readable file of weights; {AGAIN}, or {ALONE}") from error
        raise ReskdError(
            f"checkpoint {path} holds more than weights: it would look up {found[1]}, and nothing in a checkpoint is "
            f"run here; {ALONE}"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'it ends too early'}"
        raise ReskdError(f"checkpoint {path} is damaged or no file of weights ({what}); {AGAIN}") from error


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(300)
    what = None
    if not start:
        what = "is empty"
    elif start.lstrip()[:1] == b"<":
        what = "is a web page or XML, not a checkpoint"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a pointer of Git LFS, not the file itself"
    elif start[257:262] == b"ustar":
        raise ReskdError(f"checkpoint {path} is a tar archive, as torch 0.1 wrote or a download packs; unpack it, or "
                         "save its state dict again by a newer torch")  # fmt: skip
    elif start.startswith(b"PK"):
        what = _fault_of_zip(path)
    if what:
        raise ReskdError(f"checkpoint {path} {what}; {AGAIN}")


def _fault_of_zip(path: Path) -> str | None:
    """What is wrong with a zip of `torch.save`. Torch itself doesn't look at the checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith("/constants.pkl"):
                    raise ReskdError(f"checkpoint {path} is a TorchScript program; {ALONE}")
                if member.CRC == 0:  # none was written, or the member is empty
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
        found = f" with {', '.join(map(str, list(inner)[:12])) or 'nothing'} in it" if isinstance(inner, dict) else ""
        raise ReskdError(f"checkpoint {path} is a {type(inner).__name__}{found}, not a state dict of tensors; {ALONE}")
    for name, value in inner.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ReskdError(f"checkpoint {path}: {name!r} is a {type(value).__name__}, not a tensor; {ALONE}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ReskdError(f"checkpoint {path}: {name} is sparse, quantised, or without content; save plain tensors")
    return {name: value.detach() for name, value in inner.items()}


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _class_names(loaded: Any) -> tuple[str, ...] | None:
    """`meta.CLASSES` of mmcv, `meta.dataset_meta.classes` of mmengine."""
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    for place in (meta, meta.get("dataset_meta") if isinstance(meta, dict) else None):
        for key in ("CLASSES", "classes"):
            names = place.get(key) if isinstance(place, dict) else None
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None
